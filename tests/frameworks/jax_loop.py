"""JAX over processes of two virtual CPU devices each: local numpy batches make one global array."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import shardstream as ss
from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()
jax.config.update("jax_num_cpu_devices", 2)
if PLAN.devices > 1:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    jax.distributed.initialize(address, PLAN.devices, int(os.environ["RANK"]))
assert len(jax.local_devices()) == 2
assert len(jax.devices()) == 2 * PLAN.devices

loader = PLAN.loader(ss.Topology(jax.process_index(), jax.process_count()), last="pad")
if PLAN.resume:
    loader.load_state_dict(json.loads(PLAN.state.read_text()))
# Without tensor parallelism all devices split the batch; with it the two processes share it.
shape = (2 * PLAN.devices // PLAN.tp, PLAN.tp)
devices = np.array(jax.devices()).reshape(shape[::-1]).T
mesh = jax.sharding.Mesh(devices, ("data", "model"))
split = NamedSharding(mesh, PartitionSpec("data"))
weights = jnp.zeros((32, 1))


@jax.jit
def step(weights: jax.Array, tokens: jax.Array) -> jax.Array:
    def loss(weights: jax.Array) -> jax.Array:
        return jnp.square(tokens[:, :-1] / 256 @ weights - 1).mean()

    return weights - 0.01 * jax.grad(loss)(weights)


record = Record(len(loader))
stopped = False
while (epoch := loader.state_dict()["epoch"]) < PLAN.epochs and not stopped:
    for batch in loader:
        local = np.asarray(batch["tokens"], np.int32)
        tokens = jax.make_array_from_process_local_data(split, local)
        assert tokens.shape == (PLAN.batch, 33)
        # What this process's devices hold is what the loader gave, no less and no more.
        mine = {shard.index[0].start or 0: np.asarray(shard.data) for shard in tokens.addressable_shards}
        held = np.concatenate([mine[first] for first in sorted(mine)])
        record.add(epoch, {**batch, "tokens": held.astype(np.int64)})
        weights = step(weights, tokens)
        if PLAN.save == len(record.steps) and jax.process_index() == 0:
            PLAN.state.write_text(json.dumps(loader.state_dict()))
        if stopped := bool(PLAN.save) and len(record.steps) == PLAN.save + 2:
            break
weights.block_until_ready()
record.done()
if PLAN.devices > 1:
    jax.distributed.shutdown()
