"""
Octave convolution (arXiv 1904.05049), and plain and octave ResNets of it, in PyTorch.

The state dicts have torchvision's names (plain) and d-li14's (octave), so `octconv convert` reads them as they are.

    python octave.py --from plain.pth --alpha 0.5 --out octave.pth

makes the weights of an octave network from those of a plain one, for fine-tuning.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
# High frequency [N, Ch, H, W], and low frequency [N, Cl, ceil(H/2), ceil(W/2)] where Cl > 0.
Octave = tuple[Tensor, Tensor | None]


def split_channels(channels: int, alpha: float) -> tuple[int, int]:
    """Widths of the high and the low branch."""
    low = int(alpha * channels)
    return channels - low, low


def pool(x: Tensor) -> Tensor:
    """Average of 2x2. An odd size is rounded up; its border is the average of what is there."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbour, twice the size, cropped to the size of `like`."""
    return F.interpolate(x, scale_factor=2.0, mode='nearest')[..., : like.shape[-2], : like.shape[-1]]


def relu(x: Octave) -> Octave:
    high, low = x
    return F.relu(high), None if low is None else F.relu(low)


def add(x: Octave, y: Octave) -> Octave:
    return x[0] + y[0], None if x[1] is None or y[1] is None else x[1] + y[1]


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class OctConv(nn.Module):
    """Octave convolution. A path is there if both of its widths are positive; stride 2 is pooling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, alpha_in: float, alpha_out: float):
        super().__init__()
        self.stride = stride
        self.widths = split_channels(inputs, alpha_in), split_channels(outputs, alpha_out)
        (in_high, in_low), (out_high, out_low) = self.widths
        self.conv_h2h = conv(in_high, out_high, kernel)
        self.conv_l2h = conv(in_low, out_high, kernel) if in_low else None
        self.conv_h2l = conv(in_high, out_low, kernel) if out_low else None
        self.conv_l2l = conv(in_low, out_low, kernel) if in_low and out_low else None

    def forward(self, x: Octave) -> Octave:
        high, low = x
        if self.stride == 2:
            high = pool(high)
        y_high = self.conv_h2h(high)
        y_low = self.conv_h2l(pool(high)) if self.conv_h2l else None
        if self.conv_l2h:
            # At stride 2 the low branch has the size of the new high one already.
            up = self.conv_l2h(low)
            y_high = y_high + (up if self.stride == 2 else upsample(up, y_high))
        if self.conv_l2l:
            y_low = y_low + self.conv_l2l(pool(low) if self.stride == 2 else low)
        return y_high, y_low


class OctConvNorm(nn.Module):
    """Octave convolution, and batch normalisation of each branch."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, alpha_in: float, alpha_out: float):
        super().__init__()
        self.conv = OctConv(inputs, outputs, kernel, stride, alpha_in, alpha_out)
        high, low = split_channels(outputs, alpha_out)
        self.bn_h = nn.BatchNorm2d(high)
        self.bn_l = nn.BatchNorm2d(low) if low else None

    def forward(self, x: Octave) -> Octave:
        high, low = self.conv(x)
        return self.bn_h(high), self.bn_l(low) if self.bn_l else None


# (inputs, outputs, kernel, stride) of each convolution of a block.
Convs = list[tuple[int, int, int, int]]


class Block(nn.Module):
    """relu(convolutions + shortcut), with batch normalisation, and ReLU between the convolutions."""

    def __init__(self, convs: Convs, shortcut: tuple[int, int, int] | None):
        super().__init__()
        self.count = len(convs)
        for i, sizes in enumerate(convs, 1):
            self.add_module(f'conv{i}', conv(*sizes))
            self.add_module(f'bn{i}', nn.BatchNorm2d(sizes[1]))
        self.downsample = None
        if shortcut:
            inputs, outputs, stride = shortcut
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y if i == 1 else F.relu(y)))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class OctBlock(nn.Module):
    """The same of octave convolutions. The first one goes from `alpha_in` to `alpha_out`."""

    def __init__(self, convs: Convs, shortcut: tuple[int, int, int] | None, alpha_in: float, alpha_out: float):
        super().__init__()
        self.count = len(convs)
        for i, sizes in enumerate(convs, 1):
            self.add_module(f'conv{i}', OctConvNorm(*sizes, alpha_in if i == 1 else alpha_out, alpha_out))
        self.downsample = None
        if shortcut:
            inputs, outputs, stride = shortcut
            self.downsample = nn.Sequential(OctConvNorm(inputs, outputs, 1, stride, alpha_in, alpha_out))

    def forward(self, x: Octave) -> Octave:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f'conv{i}')(y if i == 1 else relu(y))
        return relu(add(y, self.downsample(x) if self.downsample else x))


# Blocks of layer1 to layer4, and whether they are bottlenecks.
RESNETS = {
    18: ((2, 2, 2, 2), False),
    26: ((2, 2, 2, 2), True),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
NETWORKS = [f'{kind}-{depth}' for kind in ('resnet', 'oct-resnet') for depth in RESNETS]


class ResNet(nn.Module):
    """
    `resnet-50`, `oct-resnet-50`, ...: images [N, 3, H, W] to logits [N, classes]. Post-activation, stride in the 3x3.
    Octave from the first block of layer1, which splits, to the first block of layer4, which merges.
    """

    def __init__(self, network: str, alpha: float = 0.5, width: int = 64, classes: int = 1000, stem: str = 'imagenet'):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f'network {network}, wanted one of {", ".join(NETWORKS)}')
        if not 0 <= alpha < 1:
            raise ValueError(f'alpha {alpha}, wanted at least 0 and less than 1')
        self.octave = network.startswith('oct-')
        self.stem = stem
        blocks, bottleneck = RESNETS[int(network.split('-')[-1])]
        self.conv1 = conv(3, width, 7, 2) if stem == 'imagenet' else conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        alphas = [0, alpha, alpha, alpha, 0] if self.octave else [0] * 5
        inputs = width
        for layer in range(1, 5):
            stage = nn.Sequential()
            for i in range(blocks[layer - 1]):
                stride = 2 if i == 0 and layer > 1 else 1
                alpha_in, alpha_out = alphas[layer - 1 if i == 0 else layer], alphas[layer]
                inner = width * 2 ** (layer - 1)
                outputs = inner * 4 if bottleneck else inner
                if bottleneck:
                    convs = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
                else:
                    convs = [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
                same = stride == 1 and split_channels(inputs, alpha_in) == split_channels(outputs, alpha_out)
                shortcut = None if same else (inputs, outputs, stride)
                stage.append(OctBlock(convs, shortcut, alpha_in, alpha_out) if self.octave else Block(convs, shortcut))
                inputs = outputs
            self.add_module(f'layer{layer}', stage)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if isinstance(module, (Block, OctBlock)):
                # A block begins as its shortcut, so that high rates do not blow it up (arXiv 1706.02677, section 5.1).
                last = module.get_submodule(f'{"conv" if self.octave else "bn"}{module.count}')
                for name, parameter in last.named_parameters():
                    if name in ('weight', 'bn_h.weight', 'bn_l.weight'):
                        nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == 'imagenet':
            x = F.max_pool2d(x, 3, 2, 1)
        y = (x, None) if self.octave else x
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = layer(y)
        high = y[0] if self.octave else y
        return self.fc(high.mean((2, 3)))


def read_state(file: str) -> State:
    """The state dict in a checkpoint, which may lie beside an epoch and an optimizer. Runs no code of the file."""
    content = torch.load(file, map_location='cpu', weights_only=True)
    return content.get('state_dict', content)


def options_of(state: State) -> dict[str, Any]:
    """What `ResNet` takes, from the names and shapes of its state dict."""
    blocks = tuple(len({name.split('.')[1] for name in state if name.startswith(f'layer{i}.')}) for i in range(1, 5))
    octave = 'layer1.0.conv1.conv.conv_h2h.weight' in state
    bottleneck = any(name.startswith('layer1.0.conv3.') for name in state)
    depth = next((depth for depth, shape in RESNETS.items() if shape == (blocks, bottleneck)), None)
    if depth is None or 'conv1.weight' not in state or 'fc.weight' not in state:
        raise ValueError(f'no ResNet that is known here: blocks {blocks}, first names {", ".join(list(state)[:3])}')
    width, _, kernel, _ = state['conv1.weight'].shape
    # layer3 has the most channels that are split. The half keeps the product with any other width off an integer.
    low = len(state.get('layer3.0.downsample.0.bn_l.weight', ()))
    high = len(state['layer3.0.downsample.0.bn_h.weight']) if octave else 0
    return {
        'network': f'{"oct-" if octave else ""}resnet-{depth}',
        'alpha': (low + 0.5) / (high + low) if low else 0.0,
        'width': width,
        'classes': len(state['fc.weight']),
        'stem': 'imagenet' if kernel == 7 else 'cifar',
    }


def network_of(state: State) -> ResNet:
    """The network that a state dict belongs to, with these weights."""
    network = ResNet(**options_of(state))
    network.load_state_dict(state)
    return network


def transfer(plain: State, network: ResNet) -> State:
    """
    The weights of a plain ResNet as those of an octave one of the same depth and width. The first channels of every
    feature become the high branch, so that each kernel falls apart into the four paths. A shortcut that only the octave
    network has begins as the identity. The two networks do not compute the same: train the new one for some epochs.
    """
    state = {name: plain[name] for name in network.state_dict() if name in plain}
    for name, unit in network.named_modules():
        if not isinstance(unit, OctConvNorm):
            continue
        (in_high, in_low), (out_high, out_low) = unit.conv.widths
        # layer1.0.conv2 is followed by layer1.0.bn2, layer1.0.downsample.0 by layer1.0.downsample.1.
        norm = re.sub(r'downsample\.0$', 'downsample.1', re.sub(r'conv(\d)$', r'bn\1', name))
        identity = torch.eye(out_high + out_low)[:, :, None, None] if in_high + in_low == out_high + out_low else None
        weight = plain.get(f'{name}.weight', identity)
        if weight is None:
            raise ValueError(f'no {name}.weight: wanted a plain ResNet of the same depth')
        ins = {'h': slice(0, in_high), 'l': slice(in_high, None)}
        outs = {'h': slice(0, out_high), 'l': slice(out_high, None)}
        for key in unit.state_dict():
            if path := re.match(r'conv\.conv_(.)2(.)\.weight', key):
                state[f'{name}.{key}'] = weight[outs[path[2]], ins[path[1]]].clone()
            elif branch := re.match(r'bn_(.)\.(weight|bias|running_mean|running_var)', key):
                begin = torch.ones if branch[2] in ('weight', 'running_var') else torch.zeros
                whole = plain.get(f'{norm}.{branch[2]}', begin(out_high + out_low))
                state[f'{name}.{key}'] = whole[outs[branch[1]]].clone()
            else:
                state[f'{name}.{key}'] = torch.tensor(0)  # num_batches_tracked
    return state


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='weights of an octave ResNet from those of a plain one')
    parser.add_argument('--from', dest='plain', required=True, help='state dict of a plain ResNet')
    parser.add_argument('--alpha', type=float, default=0.5, help='share of the low branch (default: 0.5)')
    parser.add_argument('--out', default='octave.pth', help='the new state dict (default: octave.pth)')
    flags = parser.parse_args(arguments)
    plain = read_state(flags.plain)
    options = options_of(plain)
    if options['network'].startswith('oct-'):
        parser.error(f'{flags.plain} is an {options["network"]} already, wanted a plain network')
    network = ResNet(**{**options, 'network': f'oct-{options["network"]}', 'alpha': flags.alpha})
    network.load_state_dict(transfer(plain, network))
    torch.save(network.state_dict(), flags.out)
    print(f'{flags.out}: oct-{options["network"]}, alpha {flags.alpha}, from {flags.plain}')


if __name__ == '__main__':
    main()
