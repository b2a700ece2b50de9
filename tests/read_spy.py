"""cacenet_jax.main that writes down which records it decodes for each training step, to read_<process>.json."""

import json
import sys
from pathlib import Path

from cacenet_jax.data import pipeline
from cacenet_jax.main import main


class _Spy(pipeline._ReadBatch):
    told = {}  # noqa: RUF012

    def __call__(self, step):
        seen, decode = [], pipeline.decode

        def count(encoded, height, width, name, *rest):
            seen.append(name)
            return decode(encoded, height, width, name, *rest)

        pipeline.decode = count
        try:
            batch = super().__call__(step)
        finally:
            pipeline.decode = decode
        rows = self.indices[self.sampler.batch(int(step))]
        self.told[int(step)] = {"decoded": seen, "batch": [self.split.names[row] for row in rows]}
        return batch


if __name__ == "__main__":
    process = next((word.split("=")[1] for word in sys.argv if word.startswith("--process_id=")), "0")
    pipeline._ReadBatch = _Spy
    options = pipeline.grain.ReadOptions
    pipeline.grain.ReadOptions = lambda **given: options(**{**given, "num_threads": 1})  # one step after the other
    main()
    Path(f"read_{process}.json").write_text(json.dumps(_Spy.told))
