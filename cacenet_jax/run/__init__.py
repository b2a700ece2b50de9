"""A run and its workdir.

Read, in this order, `command_line` (flags and config), `workdir` (config.json and data.json), `initialisation` (random,
pretrained, or from another run), `checkpoints` (saving and restoring), `metric_writer` (metrics.jsonl, TensorBoard,
progress), `alarms` (warnings about dead parts of the network), `compilation` (compilation cache, recompilation warning)
and `import_checkpoint` (conversion of released weights).
"""
