"""One thread: the models here are tiny, and a second one only waits for the first."""

import torch

torch.set_num_threads(1)
