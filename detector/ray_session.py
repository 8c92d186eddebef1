"""Ray on this machine, or a cluster that is joined."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from detector.cluster_address import check_address
from detector.command import TERMINATED, exit_on_sigterm
from detector.errors import UserError

NAMESPACE = "nas"
NO_GPU = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"  # without a GPU of its own a process sees none


@contextmanager
def ray_session(address: str | None, cores: int, packages: Sequence[str], *, verbose: bool) -> Iterator[str]:
    """Start or join Ray, and leave it at the end; yields its dashboard's address. Raises UserError.

    address None starts it on this machine, as if it had so many cores at least. To a cluster that is joined the code
    of `packages` is sent.
    """
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new reporter prints even when told to be quiet
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # Tune's own state is never used
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same to all processes
    os.environ.setdefault(NO_GPU, "1")
    level = logging.INFO if verbose else logging.ERROR
    where = _where(address, cores, packages)
    try:
        context = ray.init(namespace=NAMESPACE, logging_level=level, log_to_driver=verbose, **where)
    except SystemExit:  # from Ray's own SIGTERM handler; its clean-up of a start that was cut short would abort
        os._exit(TERMINATED)
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last for a cluster of other versions
        reason = str(error).splitlines()[0]
        if "runtime_env" in str(error):
            raise UserError(f"--address {address}: the job's own runtime environment differs ({reason})") from error
        if address is None:
            raise UserError(f"Ray cannot start here ({reason})") from error
        needs = "" if os.environ.get("RAY_AUTH_MODE") else "; one that asks for a token needs RAY_AUTH_MODE=token here"
        raise UserError(f"--address {address}: no Ray cluster can be joined there ({reason}){needs}") from error
    exit_on_sigterm()  # Ray has put its own handler in place
    try:
        yield context.dashboard_url or ""
    finally:
        ray.shutdown()


def _where(address: str | None, cores: int, packages: Sequence[str]) -> dict[str, Any]:
    """For ray.init."""
    if address is None:
        most = max(os.cpu_count() or 1, cores)
        return {"address": "local", "num_cpus": most, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    check_address(address)
    # Machines of the cluster need what we depend on, not us: they run the code of this process, whatever they have.
    folders = [location for name in packages for location in getattr(find_spec(name), "submodule_search_locations", [])]
    shipped = {"py_modules": folders, "env_vars": {NO_GPU: "1"}}  # their Ray runs already, with its own environment
    return {"address": address, "runtime_env": shipped}


def here() -> NodeAffinitySchedulingStrategy:
    """Keeps an actor on the driver's machine: others may leave, and their processors may calculate otherwise."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def first_line(error: Exception) -> str:
    """Ray's errors are long."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
