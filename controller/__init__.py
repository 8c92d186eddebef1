"""Who proposes: a REINFORCE policy over masked decisions, and its baselines. Integers and rewards only."""
