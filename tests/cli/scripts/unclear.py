import torch
from torch import nn

from our_library import batches, evaluate

net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(net.parameters())
for inputs, wanted in batches("s3://somewhere"):
    loss = nn.functional.binary_cross_entropy_with_logits(net(inputs), wanted)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
evaluate(net)
