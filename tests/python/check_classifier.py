"""Opens a fine-tuned classifier's weights. Usage: check_classifier.py CHECKPOINT"""

import sys

from safetensors.torch import load_file

weights = load_file(f"{sys.argv[1]}/model.safetensors")
assert weights["fc.weight"].shape[0] == weights["fc.bias"].shape[0]
assert all(tensor.isfinite().all() for tensor in weights.values())
print(f"{len(weights['fc.bias'])} classes")
