"""
Trains a plain or an octave ResNet on a folder of pictures.

    python train.py DATA OUT --network oct-resnet-50 --alpha 0.5

DATA holds `train`, and `test` or `val`: each a folder, or a .tar (.tar.gz, .tar.xz) of one, with a folder of pictures
per class. OUT gets checkpoint.pth, config.json and labels.txt, of which `octconv convert OUT/checkpoint.pth DIR` makes
a model folder.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import octave

SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp'}


class Picture(NamedTuple):
    label: str
    path: Path
    content: bytes | None = None
    """Of a picture in an archive."""


def find_pictures(data: Path, *splits: str) -> list[Picture]:
    """Every picture of the first split that is there, in the order of their names."""

    def is_picture(path: Path) -> bool:
        return path.suffix.lower() in SUFFIXES and not path.name.startswith('.')

    for split in splits:
        if (folder := data / split).is_dir():
            files = (path.relative_to(folder) for path in folder.rglob('*') if is_picture(path))
            return [Picture(path.parts[0], folder / path) for path in sorted(files) if len(path.parts) > 1]
        for archive in data.glob(f'{split}.tar*'):
            with tarfile.open(archive) as tar:
                files = {Path(member.name): tar.extractfile(member).read() for member in tar if member.isfile()}
            files = {path: content for path, content in files.items() if is_picture(path) and len(path.parts) > 2}
            return [Picture(path.parts[1], path, files[path]) for path in sorted(files)]
    raise SystemExit(f'{data}: no folder or .tar of the name {" or ".join(splits)}')


def decode(file: Path | io.BytesIO) -> Image.Image:
    """A picture as octconv sees it: upright, in sRGB, transparency over white."""
    picture = ImageOps.exif_transpose(Image.open(file))
    profile = picture.info.get('icc_profile')
    if picture.mode.startswith('I'):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # 16-bit grey
    if picture.has_transparency_data:
        white = Image.new('RGBA', picture.size, 'white')
        picture = Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB')
    if profile and picture.mode in ('RGB', 'L'):
        try:
            picture = ImageCms.profileToProfile(
                picture, io.BytesIO(profile), ImageCms.createProfile('sRGB'), outputMode='RGB'
            )
        except ImageCms.PyCMSError:
            pass  # a damaged profile is none
    return picture.convert('RGB')


def middle(picture: Image.Image, config: dict[str, Any]) -> Image.Image:
    """What a trained network sees, as config.json says: the short side resized, then a crop from the middle."""
    size = [int(config['resize'] * side / min(picture.size)) for side in picture.size]
    left, top = (round((side - want) / 2) for side, want in zip(size, (config['width'], config['height'])))
    resized = picture.resize(size, Image.Resampling[config['interpolation'].upper()])
    return resized.crop((left, top, left + config['width'], top + config['height']))


def random_crop(picture: Image.Image, config: dict[str, Any], least: float, rng: random.Random) -> Image.Image:
    """A part of at least `least` of the area, of a side ratio from 3:4 to 4:3, mirrored half of the time."""
    area, ratio = rng.uniform(least, 1) * picture.width * picture.height, math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    width, height = min(picture.width, math.sqrt(area * ratio)), min(picture.height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    kernel, box = Image.Resampling[config['interpolation'].upper()], (left, top, left + width, top + height)
    crop = picture.resize((config['width'], config['height']), kernel, box)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


class Pictures(Dataset):
    """Pictures [3, H, W] as u8, and the indices of their classes. `least_area` of 1 gives them as they are tested."""

    def __init__(self, found: list[Picture], labels: list[str], config: dict[str, Any], least_area: float = 1):
        if unknown := {picture.label for picture in found} - set(labels):
            raise SystemExit(f'{", ".join(sorted(unknown))}: to be tested, but not among the classes to be trained')
        self.found, self.labels, self.config, self.least_area = found, labels, config, least_area
        self.seed = ''

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, path, content = self.found[index]
        try:
            picture = decode(path if content is None else io.BytesIO(content))
        except OSError as error:
            raise SystemExit(f'{path}: {error}') from None
        if self.least_area < 1:
            # The numbers depend on epoch and picture alone, not on the workers, nor on where --resume begins.
            rng = random.Random(f'{self.seed} {index}')
            picture = random_crop(picture, self.config, self.least_area, rng)
        else:
            picture = middle(picture, self.config)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), self.labels.index(label)


def normalize(x: Tensor, config: dict[str, Any]) -> Tensor:
    """Pictures as u8 to the input of a network."""
    mean, std = (torch.tensor(config[key], device=x.device)[:, None, None] for key in ('mean', 'std'))
    return ((x.float() * config['scale'] - mean) / std).contiguous(memory_format=torch.channels_last)


def logits_of(network: nn.Module, loader: DataLoader, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits of all pictures, in float32, and the indices of their classes."""
    network.eval()
    with torch.inference_mode():
        parts = [(network(normalize(x.to(device), loader.dataset.config)).cpu(), wanted) for x, wanted in loader]
    return torch.cat([y for y, _ in parts]), torch.cat([wanted for _, wanted in parts])


def loss_of(y: Tensor, wanted: Tensor, taught: Tensor | None, flags: argparse.Namespace) -> Tensor:
    """Cross entropy with smoothed labels; with a teacher, partly the divergence from what it says (arXiv 1503.02531)."""
    loss = F.cross_entropy(y, wanted, label_smoothing=flags.smoothing)
    if taught is None:
        return loss
    t = flags.temperature
    soft = F.kl_div(F.log_softmax(y / t, 1), F.log_softmax(taught / t, 1), log_target=True, reduction='batchmean')
    return (1 - flags.distill) * loss + flags.distill * t * t * soft


def rate_at(step: int, steps: int, warmup: int, flags: argparse.Namespace) -> float:
    """Rises over the first steps, then half a cosine down to 0."""
    if step < warmup:
        return flags.rate * (step + 1) / warmup
    return flags.rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(content: Any, file: Path) -> None:
    """Whole or not at all."""
    part = file.with_suffix('.part')
    torch.save(content, part)
    os.replace(part, file)


def start(network: nn.Module, file: str) -> None:
    """Takes the weights of a file. Those of a plain network are split for an octave one; another classifier is left out."""
    state = octave.read_state(file)
    plain = not octave.options_of(state)['network'].startswith('oct-')
    state = octave.transfer(state, network) if network.octave and plain else state
    if state['fc.weight'].shape != network.fc.weight.shape:
        state = {name: tensor for name, tensor in state.items() if not name.startswith('fc.')}
        print(f'{file}: other classes, the classifier starts anew')
    left_out = network.load_state_dict(state, strict=False)
    if wrong := [name for name in left_out.missing_keys + left_out.unexpected_keys if not name.startswith('fc.')]:
        raise SystemExit(f'{file}: not the weights of this network, see {", ".join(wrong[:3])}')


def train(flags: argparse.Namespace) -> None:
    torch.manual_seed(flags.seed)
    torch.backends.cudnn.benchmark = True
    if flags.threads:
        torch.set_num_threads(flags.threads)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    mixed = device.type == 'cuda'

    # config.json, as a model folder has it: the network, and what becomes of a picture.
    small = flags.stem == 'cifar'
    config = {
        'height': flags.size, 'width': flags.size,
        'resize': flags.resize or (flags.size if small else round(flags.size * 256 / 224)),
        'interpolation': 'bilinear', 'scale': 1 / 255,
        'mean': [0.4914, 0.4822, 0.4465] if small else [0.485, 0.456, 0.406],
        'std': [0.247, 0.2435, 0.2616] if small else [0.229, 0.224, 0.225],
    }
    found = find_pictures(flags.data, 'train')
    labels = sorted({picture.label for picture in found})
    if flags.pictures:
        found = random.Random(0).sample(found, min(flags.pictures, len(found)))
    training = Pictures(found, labels, config, flags.least_area)
    testing = Pictures(find_pictures(flags.data, 'test', 'val'), labels, config)
    common = {'batch_size': flags.batch, 'num_workers': flags.workers, 'pin_memory': mixed}
    order = torch.Generator()
    # Batch normalisation needs more than one picture: the rest of a full batch is left out.
    train_loader = DataLoader(training, shuffle=True, generator=order, drop_last=len(training) > flags.batch, **common)
    test_loader = DataLoader(testing, **common)

    options = {
        'alpha': flags.alpha if flags.network.startswith('oct-') else 0,
        'width': flags.width, 'classes': len(labels), 'stem': flags.stem,
    }
    network = octave.ResNet(flags.network, **options)
    if flags.start and not flags.resume:
        start(network, flags.start)
    network.to(device, memory_format=torch.channels_last)
    teacher = octave.network_of(octave.read_state(flags.teacher)).to(device).eval() if flags.teacher else None
    if teacher and len(teacher.fc.weight) != len(labels):
        raise SystemExit(f'{flags.teacher}: {len(teacher.fc.weight)} classes, wanted {len(labels)}')

    # Weight decay is for the weights of convolutions and the classifier alone.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{'params': decayed, 'weight_decay': flags.decay}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.SGD(groups, lr=flags.rate, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)

    flags.out.mkdir(parents=True, exist_ok=True)
    checkpoint = flags.out / 'checkpoint.pth'
    done = 0
    if flags.resume:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(saved['state_dict'])
        optimizer.load_state_dict(saved['optimizer'])
        if saved['scaler']:  # empty after training on a CPU
            scaler.load_state_dict(saved['scaler'])
        done = saved['epoch']
    text = json.dumps({'network': flags.network, 'options': options, 'input': config}, indent=2)
    (flags.out / 'config.json').write_text(f'{text}\n')
    (flags.out / 'labels.txt').write_text(''.join(f'{label}\n' for label in labels))

    print(f'{len(training)} pictures of {len(labels)} classes, {len(testing)} more to test with, on {device}', flush=True)
    steps = len(train_loader)
    for epoch in range(done, flags.epochs):
        began, loss_sum = time.monotonic(), 0.0
        training.seed = f'{flags.seed} {epoch}'
        order.manual_seed(flags.seed * 1_000_003 + epoch)
        network.train()
        for i, (x, wanted) in enumerate(train_loader):
            x, wanted = normalize(x.to(device, non_blocking=True), config), wanted.to(device, non_blocking=True)
            rate = rate_at(epoch * steps + i, flags.epochs * steps, round(flags.warmup * steps), flags)
            for group in optimizer.param_groups:
                group['lr'] = rate
            with torch.autocast(device.type, torch.float16, enabled=mixed):
                taught = None
                if teacher:
                    with torch.no_grad():
                        taught = teacher(x).float()
                y = network(x).float()
            loss = loss_of(y, wanted, taught, flags)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss_sum += loss.detach()
        seconds = time.monotonic() - began
        y, wanted = logits_of(network, test_loader, device)
        right = int((y.argmax(1) == wanted).sum())
        save({
            'state_dict': network.state_dict(), 'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict(),
            'epoch': epoch + 1, 'right': right, 'pictures': len(wanted),
        }, checkpoint)
        print(
            f'epoch {epoch + 1} of {flags.epochs}: loss {float(loss_sum) / steps:.4f}, '
            f'top-1 {right} of {len(wanted)}, {100 * right / len(wanted):.1f} %, {seconds:.0f} s', flush=True,
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='trains a plain or an octave ResNet on a folder of pictures')

    def option(*names: str, help: str, default: Any = None, **more: Any) -> None:
        shown = help if default is None or '(default' in help else f'{help} (default: {default})'
        parser.add_argument(*names, help=shown, default=default, **more)

    parser.add_argument('data', type=Path, help='holds train, and test or val: folders, or .tar files, of a folder per class')
    parser.add_argument('out', type=Path, help='folder of checkpoint.pth, config.json and labels.txt')
    option('--network', choices=octave.NETWORKS, default='oct-resnet-50', metavar='NAME', help='as octconv names it')
    option('--alpha', type=float, default=0.5, help='share of the low branch of an octave network')
    option('--width', type=int, default=64, help='channels of the stem')
    option('--stem', choices=['imagenet', 'cifar'], default='imagenet', help='7x7 and max-pool, or 3x3')
    option('--size', type=int, help='height and width of the input (default: 224, or 32 with --stem cifar)')
    option('--resize', type=int, help='short side before the crop (default: 8/7 of size, or size with --stem cifar)')
    option('--epochs', type=int, default=90, help='passes over the pictures')
    option('--batch', type=int, default=128, help='pictures per step')
    option('--rate', type=float, default=0.1, help='learning rate, at its highest')
    option('--warmup', type=float, default=1.0, help='epochs in which the rate rises')
    option('--decay', type=float, default=5e-4, help='weight decay')
    option('--smoothing', type=float, default=0.1, help='of labels')
    option('--least-area', type=float, default=0.25, help='least share of a picture that a crop shows; 1: no augmentation')
    option('--pictures', type=int, help='train on so many of the pictures, always the same ones (default: all)')
    option('--from', dest='start', metavar='FILE', help='weights to start from; plain ones can start an octave network')
    option('--teacher', metavar='FILE', help='weights of a trained network, plain or octave, to learn from as well')
    option('--distill', type=float, default=0.5, help='share of the teacher in the loss')
    option('--temperature', type=float, default=4.0, help='divides the logits that are compared with the teacher')
    option('--resume', action='store_true', default=False, help='goes on from OUT/checkpoint.pth (default: begins anew)')
    option('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes that read pictures')
    option('--threads', type=int, help='of PyTorch on a CPU (default: all cores)')
    option('--seed', type=int, default=0, help='of weights, order and crops')
    flags = parser.parse_args(arguments)
    flags.size = flags.size or (32 if flags.stem == 'cifar' else 224)
    return flags


if __name__ == '__main__':
    train(parse())
