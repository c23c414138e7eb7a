"""The journey of an update: module -> vector -> shard -> vector -> module.

All collectives of a round are called here; it may import `modules`, `seeding` and `errors`. Read `shard.py` first: it is
what rules and attacks see.
"""

from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.layers import Layer, output_layer
from fl_lightning.updates.layout import Layout, buffer_layout, parameter_layout
from fl_lightning.updates.shard import UpdateShard

__all__ = ["Exchange", "Layer", "Layout", "UpdateShard", "buffer_layout", "output_layer", "parameter_layout"]
