"""What is left of a run that has failed, and how to go on, in words."""

from mdpo.config import MDPOConfig

from .checkpoints import last_whole_checkpoint


def way_on(args: MDPOConfig, reason: str = "", *, digests: bool = True) -> str:
    """The newest whole checkpoint and how to go on from it; where there is none, that the run begins anew.

    reason: why the run has failed, where something has to be done about it first. digests: as
    ``last_whole_checkpoint``.
    """
    first = remedy(reason) if reason else ""
    last = last_whole_checkpoint(str(args.output_dir), digests=digests)
    if last is None:
        return f"there is no checkpoint: {first}run again, which begins anew"
    if not resumes(args):
        return f"the last good state is {last}, with nothing to resume from"
    return f"the last good state is {last}: {first}go on with --resume_from_checkpoint true"


def remedy(reason: str) -> str:
    """The beginning of a way on. reason: why something could not be written, in the words of
    ``mdpo.outputs.unwritten``.
    """
    return "make room, and " if reason.startswith("the disk is full") else "see to that, and "


def resumes(args: MDPOConfig) -> bool:
    """Whether a run can go on from its own checkpoints."""
    return not args.save_only_model and args.deepspeed_plugin is None
