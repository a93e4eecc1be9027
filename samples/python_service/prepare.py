"""What the services serve: a classifier in a bundle, and the bound adapters of three tenants.

``tweets`` and ``movies`` are bound into the bundle. ``nyt``, with a head and labels of its own, waits in
the folder of adapters until somebody binds it.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's idle threads sleep: beside other work they would cost more time than they save
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers

from adexport import BuildOptions, build_model
from adexport_runtime import Bundle, bind_into_bundle, load_adapter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import vader
from console import near, say, step
from sentiment import train_base, train_tenant

HERE = Path(__file__).resolve().parents[2] / ".cache" / "services"
BUNDLED, WAITING = ("tweets", "movies"), "nyt"
LABELS = ("critical", "favourable")
TRAIN, EPOCHS, SIZE = 500, 1, 16


def main() -> None:
    """Train, build and bind, each time anew."""
    torch.manual_seed(0)
    random.seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    shutil.rmtree(HERE, ignore_errors=True)
    adapters = HERE / "adapters"
    adapters.mkdir(parents=True)
    with step("fetch the data (VADER ground truth, four domains)"):
        data = {domain: vader.load(domain) for domain in (*BUNDLED, WAITING, "amazon")}
    base, bundle = HERE / "base", HERE / "sentiment.bundle"
    train_base(base, data["amazon"])
    for tenant in (*BUNDLED, WAITING):
        folder, examples = HERE / "lora" / tenant, data[tenant][:TRAIN]
        train_tenant(base, folder, examples, EPOCHS, size=SIZE, own_head=tenant == WAITING)
    with step(f"adexport build {base.name} -o {bundle.name} --slots lora,head"):
        build_model(str(base), bundle, options=BuildOptions(slots=("lora", "head")))
    with step(f"adexport bind lora/{' lora/'.join(BUNDLED)} -b {bundle.name}"):
        for tenant in BUNDLED:
            bind_into_bundle(Bundle.open(bundle), HERE / "lora" / tenant)
    with step(f"bind lora/{WAITING} into a file of its own"):
        adapter = load_adapter(WAITING, HERE / "lora" / WAITING, Bundle.open(bundle), LABELS)
        adapter.save(adapters / f"{WAITING}.safetensors")
    say(f"{near(bundle)} is ready, and {near(adapters)} has an adapter that waits.")


if __name__ == "__main__":
    main()
