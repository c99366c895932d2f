"""Trains the published network further, with other scenes: a second version of it.

It starts from the weights in branchy-alexnet.onnx and ends between them and those that training leads to, where
validation is best: two networks so near each other have a common valley, whose middle is often lower than its sides.
Like train.py, it never reads the test split.
"""

import json
from pathlib import Path

import onnx
import torch
import torch.nn as nn

from network import Branchy, accuracy, deployable
from scenes import compose, held_out, load
from train import arguments, train

PUBLISHED = Path(__file__).with_name("branchy-alexnet.onnx")
MEASURED = 2048  # scenes
SHARES = [1.0, 0.7, 0.5, 0.3]  # of the trained weights in those that are kept


def main():
    args = arguments(__doc__, epochs=2, seed=11, checkpoint="retrained.pt")
    split = load(args, "train")
    generator = torch.Generator().manual_seed(args.seed)
    scenes = compose(split[0][:MEASURED], generator)
    train(unfold(published(), scenes), args, split, max_lr=0.01, warm_up=0.1)
    settle(args, scenes)


def published():
    """The network as it was exported: batch normalisation folded, no dropout."""
    weights = onnx.load(PUBLISHED).graph.initializer
    folded = deployable(Branchy())
    folded.load_state_dict({weight.name: torch.tensor(onnx.numpy_helper.to_array(weight)) for weight in weights})
    return folded


def unfold(folded, scenes):
    """The same function, with the batch normalisation and dropout that training needs.

    Any mean and deviation can be taken out of a convolution's weights and put into a normalisation behind it; those
    measured on `scenes` are what a batch in training will have, too. A filter's length is then of no effect but on how
    far a step of training turns it: all get the same one.
    """
    seen = {}
    convolutions = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda conv, _, output: seen.update({conv: output})) for conv in convolutions]
    with torch.no_grad():
        folded(scenes)
    for hook in hooks:
        hook.remove()

    model = Branchy()
    trained = [layer for layer in folded.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    with torch.no_grad():
        for source in trained:
            layer = layers.pop(0)
            if isinstance(source, nn.Linear):
                layer.load_state_dict(source.state_dict())
                continue
            length = source.weight.flatten(1).norm(dim=1)
            layer.weight.copy_(source.weight / length.view(-1, 1, 1, 1))
            norm = layers.pop(0)
            mean, variance = seen[source].mean((0, 2, 3)), seen[source].var((0, 2, 3))
            norm.running_mean.copy_((mean - source.bias) / length)
            norm.running_var.copy_(variance / length**2)
            norm.weight.copy_(length * (norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(mean)
    return model


def settle(args, scenes):
    """Puts the checkpoint where validation is best on the line from the published network to it."""
    validation = held_out(args, "validation")
    trained = Branchy()
    trained.load_state_dict(torch.load(args.checkpoint))
    ends = published().state_dict(), deployable(trained).state_dict()
    print(json.dumps({"share": 0.0, "validation": accuracy(published(), *validation)}), flush=True)
    best = 0.0
    for share in SHARES:
        between = published()
        between.load_state_dict({name: torch.lerp(ends[0][name], ends[1][name], share) for name in ends[0]})
        exits = accuracy(between, *validation)
        print(json.dumps({"share": share, "validation": exits}), flush=True)
        if sum(exits) > best:
            best = sum(exits)
            torch.save(unfold(between, scenes).state_dict(), args.checkpoint)


if __name__ == "__main__":
    main()
