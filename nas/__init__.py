"""The search service: search space, proxy, store, the search on Ray, and its commands."""
