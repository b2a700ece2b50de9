"""Benchmark of the same training step in PyTorch, with every pair computed as in the paper.

    python -m benchmarks.torch_step --dtype=bfloat16 --compile --out=benchmarks_out       # a GPU
    python -m benchmarks.torch_step --repeats=2 --out=benchmarks_out                      # two CPU cores: minutes
    python -m benchmarks.train_step --torch benchmarks_out/torch_step_float32.json        # and the ratio to ours
    python -m benchmarks.torch_step --parity                                              # is it the same step?

`literal` builds the 2N x 2N graph of every unordered pair, its Laplacian, both conditional maps and Theta on them;
`exact` is the pooled algebra of this package in PyTorch. So literal over exact is what the algebra brings, exact over our
bare step what the framework brings, and their product is what a user gains. What counts: forward, losses, backward and SGD
on normalised images on the device, as in the bare step of train_step.py. On a GPU: channels last, autocast for bfloat16,
TF32 for float32 (as JAX), cuDNN's choice by measurement, fused SGD, and with --compile torch.compile beside eager.

--parity copies the parameters of a small network of ours into this one and compares all loss terms and gradients in float64.

PyTorch is not needed by the package: `pip install torch` (or an index of CPU builds) in an environment of its own; only
--parity needs JAX in the same one.
"""

import argparse
import resource
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import torch_model
from benchmarks.timing import Report, interleaved

PAPER = {"stages": (3, 4, 6, 3), "width": 64}
SMALL = {"stages": (1, 1, 1, 1), "width": 4}


def build(small: bool, embed_dim: int, identities: int, chunk: int, device: str) -> torch_model.CACENet:
    """The network, in the memory layout that is fast."""
    torch.manual_seed(0)
    backbone = torch_model.Backbone(**(SMALL if small else PAPER))
    model = torch_model.CACENet(backbone, embed_dim, identities, chunk)
    return model.to(device).to(memory_format=torch.channels_last).train()


def step_of(
    model: torch_model.CACENet, images: torch.Tensor, labels: torch.Tensor, pairs: str, dtype: str, compiled: bool
) -> Callable[[], torch.Tensor]:
    """A training step on one batch; returns its loss."""
    optimizer = torch_model.optimizer(model, 1e-4, fused=images.is_cuda)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            individual, conditional = model(images, pairs)
        return sum(torch_model.losses(individual, conditional, labels).values())

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="%(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="%(default)s")
    parser.add_argument("--pairs", choices=("literal", "exact", "both"), default="both", help="%(default)s")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile beside eager")
    parser.add_argument("--chunk", type=int, default=0, help="pairs at a time, recomputed backward; 0 for all at once")
    parser.add_argument("--batch", type=int, default=16, help="images, a multiple of 4; %(default)s")
    parser.add_argument("--height", type=int, default=384, help="pixels; %(default)s")
    parser.add_argument("--width", type=int, default=128, help="pixels; %(default)s")
    parser.add_argument("--small", action="store_true", help="a network of a few channels, for tests")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved runs; %(default)s")
    parser.add_argument("--limit", type=float, default=120, help="no new round after these seconds; %(default)s")
    parser.add_argument("--parity", action="store_true", help="compare with our step and do nothing else")
    parser.add_argument("--out", metavar="DIR", help="folder for the .txt and the .json")
    args = parser.parse_args(argv)
    if args.parity:
        from benchmarks import torch_parity  # needs JAX

        return torch_parity.main()
    if args.batch % 4:
        raise SystemExit(f"--batch: found {args.batch}, expected a multiple of 4: identities have four images")

    on_gpu = args.device.startswith("cuda")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    embed_dim, identities = (16, 8) if args.small else (768, 751)
    images = torch.randn(args.batch, 3, args.height, args.width).to(args.device, memory_format=torch.channels_last)
    labels = torch.arange(args.batch, device=args.device) // 4
    kinds = ("literal", "exact") if args.pairs == "both" else (args.pairs,)
    size = {"backbone": "small" if args.small else "resnet50", "batch": args.batch, "height": args.height,
            "width": args.width, "dtype": args.dtype, "small": args.small, "chunk": args.chunk}  # fmt: skip
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    report = Report(f"torch_step_{args.dtype}", args.out)
    report.data |= {"torch": torch.__version__, "machine": machine, "size": size, "seconds": {}}
    report.say(f"{size['backbone']}, {args.batch} images of {args.height} x {args.width}, {args.dtype}; "
               f"{machine}, PyTorch {torch.__version__}")  # fmt: skip

    def wait(loss: torch.Tensor) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        if not loss.isfinite():
            raise SystemExit(f"the loss is {loss.item()}")

    rows, failed = [], 0
    for compiled in (False, True) if args.compile else (False,):
        functions = {}
        for pairs in kinds:
            name = f"{pairs} {'compiled' if compiled else 'eager'}"
            model = build(args.small, embed_dim, identities, args.chunk, args.device)
            functions[name] = step_of(model, images, labels, pairs, args.dtype, compiled)
        try:
            timed = interleaved(functions, wait, repeats=args.repeats, queue=on_gpu, limit_s=args.limit)
        except Exception as error:  # a compiler that is missing must not cost the eager figures
            if not compiled:
                raise
            report.say(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            failed = 1
            continue
        for name, found in timed.items():
            report.data["seconds"][name] = found._asdict()
            rows.append(
                (name, 1e3 * found.median, 1e3 * found.low, 1e3 * found.high, found.cpu, args.batch / found.median)
            )
    report.table("steps", ("PyTorch step", "ms", "fastest", "slowest", "CPU s", "images/s"), rows)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    report.say(f"peak memory of all of them: {peak:.3g} GB")
    report.data["peak_gigabytes"] = peak
    report.write()
    return failed


if __name__ == "__main__":
    sys.exit(main())
