"""Trains branchy-alexnet on scenes composed afresh in each epoch.

The checkpoint kept is chosen on validation scenes; this script never reads the test split.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

from network import Branchy, accuracy
from scenes import add_arguments, compose, held_out, load

BATCH = 128
LOSS_WEIGHTS = [0.3, 0.3, 0.4, 0.6, 1.0]  # of the exits; the trunk serves the last one first


def main():
    args = arguments(__doc__, epochs=18, seed=7, checkpoint="checkpoint.pt")
    train(Branchy(), args, load(args, "train"), max_lr=0.1, warm_up=0.2)


def arguments(description, epochs, seed, checkpoint):
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", default=checkpoint, help="where the best epoch's weights go")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    return args


def train(model, args, split, max_lr, warm_up):
    """The learning rate rises to `max_lr` during the first `warm_up` of all steps, then falls to almost nothing."""
    pictures, labels = split
    validation = held_out(args, "validation")
    steps = len(pictures) // BATCH
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr, total_steps=args.epochs * steps, pct_start=warm_up)

    best = (False, 0.0)
    for epoch in range(1, args.epochs + 1):
        start, total_loss = time.time(), 0.0
        generator = torch.Generator().manual_seed(args.seed * 1_000 + epoch)
        order = torch.randperm(len(pictures), generator=generator)
        model.train()
        for batch in order[: steps * BATCH].split(BATCH):
            scenes = compose(pictures[batch], generator, flip=True).contiguous(memory_format=torch.channels_last)
            loss = sum(w * F.cross_entropy(logits, labels[batch]) for w, logits in zip(LOSS_WEIGHTS, model(scenes)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total_loss += loss.item()
        exits = accuracy(model, *validation)
        report = {"epoch": epoch, "loss": round(total_loss / steps, 4), "validation": exits, "seconds": round(time.time() - start)}
        print(json.dumps(report), flush=True)
        # Best: each exit better than the one before, then the highest mean.
        rank = (all(a < b for a, b in zip(exits, exits[1:])), sum(exits))
        if rank >= best:
            best = rank
            torch.save(model.state_dict(), args.checkpoint)


if __name__ == "__main__":
    main()
