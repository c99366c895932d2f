"""Trains branchy-alexnet on scenes composed afresh in each epoch.

First all exits together, then the last stage alone: what it no longer has to share makes the last exit better and
leaves the others as they are. Every checkpoint is chosen on validation scenes; this script never reads the test split.
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
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=18, help="of all exits together")
    parser.add_argument("--last-epochs", type=int, default=4, help="of the last stage alone")
    parser.add_argument("--first-epoch", type=int, default=1, help="its number, from which its scenes follow")
    parser.add_argument("--resume", help="weights to start from, in place of random ones")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="where the best epoch's weights go")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    pictures, labels = load(args, "train")
    validation = held_out(args, "validation")
    model = Branchy()
    if args.resume:
        model.load_state_dict(torch.load(args.resume))
    model = model.to(memory_format=torch.channels_last)
    best = rank(accuracy(model, *validation))
    torch.save(model.state_dict(), args.checkpoint)

    def run(epochs, trained, weights, max_lr, best):
        """Trains the modules `trained` and keeps the best epoch's weights, if better than `best`; returns the better rank."""
        model.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        steps = len(pictures) // BATCH
        optimiser = torch.optim.SGD(parameters, lr=max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr, total_steps=len(epochs) * steps, pct_start=0.2)
        for epoch in epochs:
            start, total_loss = time.time(), 0.0
            generator = torch.Generator().manual_seed(args.seed * 1_000 + epoch)
            order = torch.randperm(len(pictures), generator=generator)
            model.eval()
            for module in trained:
                module.train()
            for batch in order[: steps * BATCH].split(BATCH):
                scenes = compose(pictures[batch], generator, flip=True).contiguous(memory_format=torch.channels_last)
                loss = sum(w * F.cross_entropy(logits, labels[batch]) for w, logits in zip(weights, model(scenes)) if w)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total_loss += loss.item()
            exits = accuracy(model, *validation)
            report = {"epoch": epoch, "loss": round(total_loss / steps, 4), "validation": exits, "seconds": round(time.time() - start)}
            print(json.dumps(report), flush=True)
            if rank(exits) >= best:
                best = rank(exits)
                torch.save(model.state_dict(), args.checkpoint)
        return best

    last = args.first_epoch + args.epochs
    if args.epochs:
        best = run(range(args.first_epoch, last), [model], LOSS_WEIGHTS, 0.1, best)
        model.load_state_dict(torch.load(args.checkpoint))
    if args.last_epochs:
        run(range(last, last + args.last_epochs), [model.trunks[-1], model.branches[-1]], [0, 0, 0, 0, 1], 0.03, best)


def rank(exits):
    """The better of two epochs has each exit better than the one before, then the higher mean."""
    return all(a < b for a, b in zip(exits, exits[1:])), sum(exits)


if __name__ == "__main__":
    main()
