"""MirroredStrategy over logical CPUs; each replica takes batches in turn from one tf.data.Dataset."""

from __future__ import annotations

import json

import tensorflow as tf

import shardstream as ss
from shardstream.integrations.position import after
from tests.frameworks.loop import Plan, Record

PLAN = Plan.given()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * PLAN.replicas)
strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(PLAN.replicas)])
assert strategy.num_replicas_in_sync == PLAN.replicas

loader = PLAN.loader(ss.Topology(), last="pad")
if PLAN.resume:
    loader.load_state_dict(json.loads(PLAN.state.read_text()))
start = loader.state_dict()
batches = strategy.distribute_datasets_from_function(
    lambda context: ss.to_tf(loader, replicas=context.num_replicas_in_sync)
)

with strategy.scope():
    weights = tf.Variable(tf.zeros([32, 1]))


@tf.function
def step(batch):  # type: ignore[no-untyped-def]
    def replica(batch):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            made = tf.cast(batch["tokens"][:, :-1], tf.float32) @ weights / 256
            loss = tf.reduce_mean(tf.square(made - 1))
        total = tf.distribute.get_replica_context().all_reduce("sum", tape.gradient(loss, weights))
        weights.assign_sub(0.01 * total)
        return loss

    return strategy.run(replica, args=(batch,))


records = [Record(len(loader)) for _ in range(PLAN.replicas)]
steps = 0
stopped = False
while (epoch := after(loader, start, steps)["epoch"]) < PLAN.epochs and not stopped:
    for batch in batches:
        parts = {name: strategy.experimental_local_results(value) for name, value in batch.items()}
        for number, record in enumerate(records):
            record.add(epoch, {name: values[number].numpy() for name, values in parts.items()})
        step(batch)
        steps += 1
        if PLAN.save == steps:
            # By the steps trained: tf.data has taken more from the loader.
            PLAN.state.write_text(json.dumps(after(loader, start, steps)))
        if stopped := bool(PLAN.save) and steps == PLAN.save + 2:
            break
records[0].done([record.steps for record in records])
