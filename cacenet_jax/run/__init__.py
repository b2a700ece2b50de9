"""A run and its folder.

Read `command_line` (config and flags), `workdir` (config.json and data.json of a run), `initialisation` (the first state:
random, pretrained, or from another run), `checkpoints` (saving and restoring), `metric_writer` (metrics.jsonl, TensorBoard,
progress), `compilation` (compilation cache, recompilation warning) and `import_checkpoint` (released weights to a workdir).
"""
