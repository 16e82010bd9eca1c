# Writes the .pth files of this folder and expected.json: python3 make.py
import collections
import json
import torch
from torch import nn

torch.manual_seed(0)
random = torch.randn

# A module's state dict has _metadata and num_batches_tracked.
module = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(2, 3, 3), bn=nn.BatchNorm2d(3)))
state = module.state_dict()
torch.save(state, 'module.pth')
torch.save(state, 'module-legacy.pth', _use_new_zipfile_serialization=False)
torch.save({
    'epoch': 3, 'best': 71.5,
    'state_dict': collections.OrderedDict(('module.' + name, tensor) for name, tensor in state.items()),
    'optimizer': torch.optim.Adam(module.parameters()).state_dict(),
}, 'checkpoint.pth')

base, shared = random(4, 6), random(12)
views = {
    'f16': random(2, 3).half(), 'bf16': random(2, 3).bfloat16(),
    'i8': torch.tensor([-128, 0, 127], dtype=torch.int8), 'u8': torch.tensor([0, 255], dtype=torch.uint8),
    'i32': torch.tensor([-2**31, 2**31 - 1], dtype=torch.int32),
    'transposed': base.t(), 'slice': base[1:3, 1:5:2],
    'last': random(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    'shared.a': shared[:4].view(2, 2), 'shared.b': shared[3:9], 'shared.all': shared, 'again': shared,
    'scalar': torch.tensor(1.5), 'empty': torch.zeros(2, 0, 3), 'parameter': nn.Parameter(random(2)),
    'halfslice': random(6).half()[1::2],
}
torch.save(views, 'views.pth')
torch.save(views, 'views-legacy.pth', _use_new_zipfile_serialization=False)
torch.save(views, 'views-protocol4.pth', pickle_protocol=4)
torch.save({'double': random(2).double()}, 'double.pth')
torch.save({'expanded': torch.ones(1).expand(5)}, 'expanded.pth')


def bits(tensors):
    kept = {name: tensor.detach() for name, tensor in tensors.items() if 'num_batches_tracked' not in name}
    return {name: {'dtype': str(tensor.dtype)[len('torch.'):], 'shape': list(tensor.shape),
                   'bytes': tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex()}
            for name, tensor in kept.items()}


with open('expected.json', 'w') as file:
    json.dump({'module': bits(state), 'views': bits(views)}, file, indent=1)
    file.write('\n')
