# %% [markdown]
# # Exits for a network of your own
#
# A small trunk that answers at its end gets branches on the way, is trained with them, and becomes a bundle that leaves
# early when time is short. Cells are marked with `# %%`, as VS Code, Spyder and Jupytext read them; as a script:
#
#     apt install python3-torch python3-matplotlib dataset-fashion-mnist
#     cargo build --release --workspace
#     PATH="$PWD/target/release:$PATH" python3 docs/examples/exits.py target/exits
#
# It takes some minutes, most of them for training. Everything it writes is in the folder that it is given.

# %%
import gzip
import json
import pathlib
import subprocess
import sys

import matplotlib
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

matplotlib.use("Agg")
from matplotlib import pyplot

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "exits")
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(7)

# %% [markdown]
# ## Data
#
# Put your own here: pictures as u8 in NCHW with three channels, and a class for each. What is measured on `validation` goes
# into the bundle and decides which exit is taken; nothing is trained on it.

# %%
CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
TRAINED, VALIDATED = 20_000, 5_000


def idx(name, header_bytes):
    path = f"/usr/share/datasets/fashion-mnist/{name}.gz"
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=header_bytes)


grey = torch.from_numpy(idx("train-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28).copy())
labels = torch.from_numpy(idx("train-labels-idx1-ubyte", 8).astype(np.int64))
pictures = grey.expand(-1, 3, -1, -1)
train = pictures[:TRAINED], labels[:TRAINED]
validation = pictures[-VALIDATED:], labels[-VALIDATED:]

# %% [markdown]
# ## The trunk, and its branches
#
# A branch should be cheap beside the rest of the trunk: an exit that costs as much as going on is of no use. Normalisation is
# part of the network, so that hosts are asked with the bytes of a picture.


# %%
def stage(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        maps = [16, 32, 64]
        self.trunk = nn.ModuleList([stage(3, maps[0]), stage(maps[0], maps[1]), stage(maps[1], maps[2])])
        # Sides of the maps behind each stage: 14, 7 and 3.
        self.branches = nn.ModuleList([
            nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(maps[0] * 3 * 3, len(CLASSES))),
            nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(maps[1] * 3 * 3, len(CLASSES))),
            nn.Sequential(nn.Flatten(), nn.Linear(maps[2] * 3 * 3, len(CLASSES))),
        ])

    def forward(self, pictures):
        x, answers = pictures.float() / 255 - 0.5, []
        for stage, branch in zip(self.trunk, self.branches):
            x = stage(x)
            answers.append(branch(x))
        return answers


# %% [markdown]
# ## Training
#
# All exits at once: the sum of their losses, the last one's counting most, since the trunk serves it first.

# %%
LOSS_WEIGHTS, EPOCHS, BATCH = [0.3, 0.5, 1.0], 3, 128
model = Exits()
steps = EPOCHS * (TRAINED // BATCH)
optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.05, total_steps=steps)


def accuracy(model, pictures, labels):
    model.eval()
    with torch.no_grad():
        answers = [torch.cat(parts) for parts in zip(*(model(part) for part in pictures.split(500)))]
    return [float((answer.argmax(1) == labels).float().mean()) for answer in answers]


for epoch in range(EPOCHS):
    model.train()
    for batch in torch.randperm(TRAINED)[: TRAINED // BATCH * BATCH].split(BATCH):
        loss = sum(w * F.cross_entropy(logits, train[1][batch]) for w, logits in zip(LOSS_WEIGHTS, model(train[0][batch])))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    accuracies = accuracy(model, *validation)
    print(f"epoch {epoch + 1}: right on validation, by exit: {[round(share, 4) for share in accuracies]}", flush=True)

# %% [markdown]
# ## ONNX, and what is said of it
#
# Each exit is an output of the file. `accuracy_validation` is what plans are made with.

# %%
names = [f"exit{number}" for number in range(1, len(accuracies) + 1)]
picture = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
torch.onnx.export(model.eval(), picture, str(out / "exits.onnx"), input_names=["image"], output_names=names, opset_version=13)
exits = "".join(f'\n[[exits]]\noutput = "{name}"\naccuracy_validation = {share:.4f}\n' for name, share in zip(names, accuracies))
(out / "exits.toml").write_text(f"""format = 1
name = "exits"
onnx = "exits.onnx"
classes = {json.dumps(CLASSES)}

[input]
name = "image"
shape = [1, 3, 28, 28]
{exits}""")


# %% [markdown]
# ## A bundle, and what it would do
#
# `profile` measures this machine. `plan` says what the fastest plan of each exit takes on a device 1,000 times slower, which is
# emulated, with an edge like this machine behind a link.


# %%
def edgent(*arguments):
    done = subprocess.run(["edgent", *map(str, arguments), "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


bundle = out / "exits.bundle"
built = edgent("build", out / "exits.onnx", "--out", bundle)
verified = edgent("verify", bundle)
profile = edgent("profile", bundle, "--quick", "--out", out / "profile.json")
print(f"{built['segments']} segments, {built['cuts']} cuts, {verified['cuts_bit_exact']} of {verified['cuts_checked']} checks bit-exact")


def fastest_ms(rate_bps):
    """What each exit takes at least at a rate; 0 is no link."""
    plans = edgent("plan", bundle, "--rate-bps", rate_bps, "--slowdown", 1000, "--deadline-ms", 100, "--explain")["candidates"]
    return [min(plan["total_us"] for plan in plans if plan["exit"] == name) / 1e3 for name in names]


rows = {"device alone (emulated)": fastest_ms(0), "with an edge at 500 kbit/s": fastest_ms(5e5), "at 5 Mbit/s": fastest_ms(5e6)}
for row, times_ms in rows.items():
    print(f"{row:<28} " + "  ".join(f"{name} {ms:.1f} ms" for name, ms in zip(names, times_ms)))

# %% [markdown]
# ## How much accuracy a deadline buys
#
# A deadline is a vertical line: the highest point to its left is the exit that is taken.

# %%
figure, axes = pyplot.subplots(figsize=(7, 4.5))
for (row, times_ms), marker in zip(rows.items(), "osv"):
    axes.plot(times_ms, [100 * share for share in accuracies], marker=marker, linestyle="--", label=row)
for name, ms, share in zip(names, rows["device alone (emulated)"], accuracies):
    axes.annotate(name, (ms, 100 * share), textcoords="offset points", xytext=(6, -12))
axes.set(xlabel="latency of the fastest plan, ms", ylabel="right on validation, %", title="Exits: accuracy over latency")
axes.set_xscale("log")
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
figure.savefig(out / "exits.png", dpi=120)
print(f"{out / 'exits.png'} shows it")
