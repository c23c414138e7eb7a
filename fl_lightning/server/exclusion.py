"""Updates that are not finite: hostile, or of a client whose training blew up. They are left out, never averaged."""

import logging

import torch
from torch import Tensor

from fl_lightning.cohort import Cohort
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


def exclude_nonfinite(cohort: Cohort, shard: UpdateShard, buffer_shard: UpdateShard) -> Tensor:
    """Drop the clients whose updates are not finite everywhere; a root update like that becomes zero.

    Args:
        cohort: who the N rows are.
        shard: of the parameters.
        buffer_shard: of the buffers.

    Returns:
        (N,) bool on the CPU, who stays.
    """
    t = shard.round_number
    if shard.root is not None and not bool(shard.with_rows(shard.root[None]).finite_rows()):
        shard.root = torch.zeros_like(shard.root)
        log.warning("round %d: the update of the server's root set is not finite; it counts as zero", t)
    finite = shard.finite_rows() & buffer_shard.finite_rows()  # (N,)
    stays = finite.cpu()
    if not stays.all():
        shard.keep(finite)
        buffer_shard.keep(finite)
        clients = cohort.clients[~stays].tolist()
        remark = "" if shard.num_clients else "; no update is left, so the model stays as it is"
        log.warning("round %d: excluded %d non-finite updates, of clients %s%s", t, len(clients), clients, remark)
    return stays
