"""log_prob of a population from `popsed_jax/priors/FORMAT.md`, with NumPy and the standard library alone."""

import hashlib
import json
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np

SQRT2PI = np.sqrt(2.0 * np.pi)
KINDS = {"F32": "<f4", "F64": "<f8"}


def load(folder):
    description = json.loads((folder / "population.json").read_text())
    content = (folder / "weights.safetensors").read_bytes()
    assert description["format"] == "popsed_jax population"
    assert description["format_version"] <= 2
    assert hashlib.sha256(content).hexdigest() == description["weights_sha256"]
    own = {key: value for key, value in description.items() if key != "description_sha256"}
    packed = json.dumps(own, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(packed.encode()).hexdigest() == description["description_sha256"]
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(content[begin:end], KINDS[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"]).astype(float)
    return description, arrays


def to_u(theta, p):
    width = p["high"] - p["low"]
    f = (theta - p["low"]) / width
    u = np.vectorize(NormalDist().inv_cdf)(f ** p["power"])
    assert p["student_t"] == 0.0
    log_p = np.log(p["power"] / width) + (p["power"] - 1.0) * np.log(f)
    return u, -0.5 * u**2 - np.log(SQRT2PI) - log_p


def gelu(t):
    return 0.5 * t * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (t + 0.044715 * t**3)))


def inverse_spline(r, y, n, bound):
    """One value through the inverse of a spline, and the logarithm of the inverse's slope."""
    if abs(y) >= bound:
        return y, 0.0
    powers = [np.exp(part - part.max()) for part in (r[:n], r[n : 2 * n])]
    sizes = [1e-4 + (2.0 * bound - 1e-4 * n) * power / power.sum() for power in powers]
    xs, ys = (np.concatenate([[-bound], -bound + np.cumsum(size)]) for size in sizes)
    inner = 1e-4 + np.log1p(np.exp(r[2 * n :] + np.log(np.expm1(1.0 - 1e-4))))
    slopes = np.concatenate([[1.0], inner, [1.0]])
    k = min(int(np.searchsorted(ys, y, side="right")) - 1, n - 1)
    s, low, high, w = sizes[1][k] / sizes[0][k], slopes[k], slopes[k + 1], (y - ys[k]) / sizes[1][k]
    excess = high + low - 2.0 * s
    b = low - excess * w
    z = 2.0 * s * w / (b + np.sqrt(b**2 + 4.0 * (s - b) * s * w))
    top = s**2 * (high * z**2 + 2.0 * s * z * (1.0 - z) + low * (1.0 - z) ** 2)
    return xs[k] + sizes[0][k] * z, -np.log(top / (s + excess * z * (1.0 - z)) ** 2)


def log_prob(description, arrays, theta):
    flow, num, dim = description["flow"], len(theta), len(description["parameters"])
    kept, bins = dim // 2, flow["num_bins"]
    columns = [to_u(theta[:, i], p) for i, p in enumerate(description["parameters"])]
    u, log_det = np.stack([c[0] for c in columns], axis=1), sum(c[1] for c in columns)
    total = -np.inf
    for member in range(description["num_members"]):
        chol = arrays["[0].chol"][member]
        x = np.linalg.solve(chol, (u - arrays["[0].mean"][member]).T).T
        log_q = np.full(num, -np.log(np.diag(chol)).sum())
        for layer in reversed(range(flow["num_layers"])):
            order = [int(word) for word in description["orders"][layer].split()]
            stay, move = order[:kept], order[kept:]
            dense = [
                [arrays[f"[0].layers['params']['Dense_{i}']['{part}']"][member, layer] for part in ("kernel", "bias")]
                for i in range(flow["num_blocks"] + 2)
            ]
            h = x[:, stay] @ dense[0][0] + dense[0][1]
            for kernel, bias in dense[1:-1]:
                h = h + gelu(h) @ kernel + bias
            r = (gelu(h) @ dense[-1][0] + dense[-1][1]).reshape(num, 3 * bins - 1, len(move))
            for j, column in enumerate(move):
                moved = [inverse_spline(r[i, :, j], x[i, column], bins, flow["tail_bound"]) for i in range(num)]
                x[:, column] = [value for value, _ in moved]
                log_q += [log_slope for _, log_slope in moved]
        log_q += (-0.5 * x**2 - np.log(SQRT2PI)).sum(axis=1)
        total = np.logaddexp(total, np.log(arrays["[1]"][member]) + log_q)
    return total - log_det


if __name__ == "__main__":
    values = log_prob(*load(Path(sys.argv[1])), np.array(json.loads(sys.argv[2])))
    print(
        json.dumps([values.tolist(), sorted(set(sys.modules) & {"jax", "popsed_jax", "flax", "safetensors", "scipy"})])
    )
