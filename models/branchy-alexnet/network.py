"""branchy-alexnet: an AlexNet-like trunk of five stages, each followed by a branch to an exit."""

import torch
import torch.nn as nn
import torch.nn.functional as F

EXITS = [f"exit{i}" for i in range(1, 6)]


class LocalResponse(torch.autograd.Function):
    """y = x / (1 + alpha / size * sum of x^2 over `size` neighbouring channels) ^ 0.75

    The same figures as torch's LocalResponseNorm, which is slower and whose ONNX export contains an
    `If`; this one becomes ONNX's own LRN operator. Its derivative is written out for speed.
    """

    @staticmethod
    def forward(ctx, x, size, alpha):
        scale = LocalResponse.neighbours(x * x, size).mul_(alpha / size).add_(1)
        root = scale.rsqrt()
        power = root * root.sqrt()  # scale ^ -0.75
        ctx.save_for_backward(x, scale, power)
        ctx.arguments = size, alpha
        return x * power

    @staticmethod
    def backward(ctx, gradient):
        x, scale, power = ctx.saved_tensors
        size, alpha = ctx.arguments
        direct = gradient * power
        spread = LocalResponse.neighbours(direct * x / scale, size)
        return direct - spread.mul_(x).mul_(2 * 0.75 * alpha / size), None, None

    @staticmethod
    def neighbours(x, size):
        total = x.clone()
        for step in range(1, size // 2 + 1):
            total[:, step:] += x[:, :-step]
            total[:, :-step] += x[:, step:]
        return total

    @staticmethod
    def symbolic(g, x, size, alpha):
        return g.op("LRN", x, size_i=size, alpha_f=alpha, beta_f=0.75, bias_f=1.0)


class Lrn(nn.Module):
    def forward(self, x):
        return LocalResponse.apply(x, 5, 0.05)


def conv(inputs, outputs, kernel, stride=1):
    """Convolution and ReLU. The batch normalisation between them is for training; `deployable` folds it away."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def pool():
    return nn.MaxPool2d(2)


def flat():
    return nn.Flatten()


def dense(inputs, outputs):
    return [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.3)]


class Branchy(nn.Module):
    def __init__(self):
        super().__init__()
        trunks = [
            [*conv(3, 24, 5, 2), Lrn(), pool()],  # 24 x 16 x 16
            [*conv(24, 48, 5), Lrn(), pool()],  # 48 x 8 x 8
            [*conv(48, 96, 3)],  # 96 x 8 x 8
            [*conv(96, 128, 3)],  # 128 x 8 x 8
            [*conv(128, 128, 3), pool(), flat(), *dense(2048, 256)],  # 256
        ]
        branches = [
            [pool(), *conv(24, 32, 3), pool(), flat(), *dense(512, 48), nn.Linear(48, 10)],
            [*conv(48, 24, 3), pool(), flat(), *dense(384, 64), nn.Linear(64, 10)],
            [*conv(96, 24, 3), pool(), flat(), *dense(384, 96), nn.Linear(96, 10)],
            [*conv(128, 32, 3), pool(), flat(), *dense(512, 128), nn.Linear(128, 10)],
            [*dense(256, 128), nn.Linear(128, 10)],
        ]
        self.trunks = nn.ModuleList(nn.Sequential(*layers) for layers in trunks)
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches)

    def forward(self, scenes):
        """Logits [N, 10] of each exit, for scenes [N, 3, 64, 64] of u8."""
        x = (scenes.float() - 100.0) / 50.0
        exits = []
        for trunk, branch in zip(self.trunks, self.branches):
            x = trunk(x)
            exits.append(branch(x))
        return exits


def accuracy(model, scenes, labels):
    """Share of right answers of each exit."""
    model.eval()
    right = torch.zeros(len(EXITS))
    with torch.no_grad():
        for part, truth in zip(scenes.split(500), labels.split(500)):
            right += torch.stack([(logits.argmax(1) == truth).sum() for logits in model(part)])
    return [round(r / len(scenes), 4) for r in right.tolist()]


def deployable(model):
    """The same function with batch normalisation folded into the convolutions and without dropout."""
    model.eval()
    for stages in (model.trunks, model.branches):
        for index, stage in enumerate(stages):
            layers = []
            for layer in stage:
                if isinstance(layer, nn.BatchNorm2d):
                    layers[-1] = nn.utils.fusion.fuse_conv_bn_eval(layers[-1], layer)
                elif not isinstance(layer, nn.Dropout):
                    layers.append(layer)
            stages[index] = nn.Sequential(*layers)
    return model


def costs(model):
    """(multiply-adds from the scene to each exit, shape of the activation after each layer of the trunk)."""
    scene = torch.zeros(1, 3, 64, 64)

    def run(stage, x):
        macs, shapes = 0, []
        for layer in stage:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                macs += layer.weight.numel() * x.shape[2] * x.shape[3]
            elif isinstance(layer, nn.Linear):
                macs += layer.weight.numel()
            shapes.append((type(layer).__name__.lower(), tuple(x.shape[1:])))
        return x, macs, shapes

    x, trunk_macs, exits, cuts = scene, 0, [], []
    with torch.no_grad():
        for trunk, branch in zip(model.trunks, model.branches):
            x, macs, shapes = run(trunk, x)
            trunk_macs += macs
            cuts += shapes
            exits.append(trunk_macs + run(branch, x)[1])
    return exits, cuts
