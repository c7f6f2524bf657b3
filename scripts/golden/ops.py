"""Golden values of the operators: writes crates/ops/tests/golden/<family>.json.

    python scripts/golden/ops.py

Every case computes an operator on tiny tensors in f64, in PyTorch's layout and under PyTorch's names for operator
and parameters, and the gradient of sum(output * probe) in each differentiable input. A tensor `t` of the case `c` is
drawn by formula.py under the name "c.t", the probe under "probe.c". Parameters (weight, bias, running_mean,
running_var) follow the formula's rules for a state dict; other tensors are u times the case's `scale`.
"""

import torch
import torch.nn.functional as F

import formula

PARAMETERS = ("weight", "bias", "running_mean", "running_var")
MAP = (2, 3, 7, 5)


def inputs_of(case, shapes, scale):
    """The tensors of a case; those drawn from the formula take part in the backward pass but for statistics."""
    tensors = {}
    for key, shape in shapes.items():
        name = f"{case}.{key}"
        if key in PARAMETERS:
            tensors[key] = torch.from_numpy(formula.state(name, shape)).double()
        else:
            tensors[key] = scale * formula.tensor(name, shape)
        tensors[key].requires_grad_(not key.startswith("running_"))
    return tensors


def run(case, op, function, shapes, params, scale=1.0):
    """One case: `function` gets the tensors by name and the parameters."""
    tensors = inputs_of(case, shapes, scale)
    output = function(**tensors, **params)
    probe = formula.tensor(f"probe.{case}", tuple(output.shape))
    (output * probe).sum().backward()
    document = {"name": case, "op": op, "inputs": shapes, "scale": scale, "params": params}
    document["output"] = {"shape": list(output.shape), "values": output.flatten().tolist()}
    document["grads"] = {k: t.grad.flatten().tolist() for k, t in tensors.items() if t.grad is not None}
    after = {k: t.tolist() for k, t in tensors.items() if k.startswith("running_")}
    return document | ({"after": after} if after else {})


def conv2d():
    def case(name, xs, weight, bias=True, **params):
        params = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | params
        shapes = {"input": xs, "weight": weight} | ({"bias": weight[:1]} if bias else {})
        return run(f"conv2d.{name}", "conv2d", F.conv2d, shapes, params)

    yield case("plain", MAP, (4, 3, 3, 3), padding=(1, 1))
    yield case("pointwise", (2, 5, 7, 5), (3, 5, 1, 1), bias=False, stride=(2, 2))
    yield case("rectangular", MAP, (2, 3, 3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    yield case("stride3", MAP, (2, 3, 3, 3), stride=(3, 3), padding=(1, 1))
    yield case("dilated", MAP, (2, 3, 3, 3), padding=(2, 2), dilation=(2, 2))
    yield case("grouped", (2, 4, 7, 5), (6, 2, 3, 3), stride=(2, 2), padding=(1, 1), groups=2)
    yield case("depthwise", MAP, (3, 1, 3, 3), bias=False, padding=(1, 1), groups=3)
    yield case("depthwise_stride2", MAP, (3, 1, 5, 5), stride=(2, 2), padding=(2, 2), groups=3)
    yield case("multiplier", (2, 2, 7, 5), (4, 1, 3, 3), bias=False, padding=(1, 1), groups=2)
    yield case("stem", MAP, (2, 3, 7, 7), bias=False, stride=(2, 2), padding=(3, 3))
    yield run("linear.plain", "linear", F.linear, {"input": (3, 7), "weight": (4, 7), "bias": (4,)}, {})


def batch_norm():
    def normalise(input, running_mean, running_var, training, momentum, eps, weight=None, bias=None, residual=None):
        ys = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if residual is None:
            return ys
        ys = ys + residual
        assert ys.abs().min() > 1e-4, "a ReLU input is too close to its kink"
        return F.relu(ys)

    def case(name, training, affine=True, residual=False, momentum=0.1, eps=1e-5):
        c = MAP[1:2]
        shapes = {"input": MAP, "running_mean": c, "running_var": c}
        shapes |= {"weight": c, "bias": c} if affine else {}
        shapes |= {"residual": MAP} if residual else {}
        op = "batch_norm + residual + relu" if residual else "batch_norm"
        params = {"training": training, "momentum": momentum, "eps": eps}
        return run(f"batch_norm.{name}", op, normalise, shapes, params)

    yield case("train", True)
    yield case("eval", False)
    yield case("train_residual", True, residual=True)
    yield case("eval_residual", False, residual=True)
    yield case("train_plain", True, affine=False, momentum=0.4, eps=1e-3)


def max_pool2d():
    def case(name, xs, kernel, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
        params = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        return run(f"max_pool2d.{name}", "max_pool2d", F.max_pool2d, {"input": xs}, params | {"ceil_mode": ceil_mode})

    yield case("halve", MAP, (2, 2), (2, 2))
    yield case("overlapping", MAP, (3, 3), (2, 2), padding=(1, 1))
    yield case("ceil", (2, 3, 8, 6), (3, 3), (2, 2), ceil_mode=True)
    # Here the last window would start in the far padding and is dropped.
    yield case("ceil_padded", MAP, (2, 2), (2, 2), padding=(1, 1), ceil_mode=True)
    yield case("ceil_larger", (2, 3, 2, 1), (3, 2), (2, 2), ceil_mode=True)
    yield case("rectangular", MAP, (3, 2), (2, 3), padding=(1, 0))
    yield case("dilated", MAP, (2, 2), (1, 1), dilation=(3, 2))
    yield case("stride_gaps", MAP, (2, 2), (3, 3))


def avg_pool2d():
    def case(name, xs, kernel, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True):
        params = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        params["count_include_pad"] = count_include_pad
        return run(f"avg_pool2d.{name}", "avg_pool2d", F.avg_pool2d, {"input": xs}, params)

    yield case("halve", MAP, (2, 2), (2, 2))
    for include in (True, False):
        suffix = "" if include else "_excluded"
        rest = {"count_include_pad": include}
        yield case(f"padded{suffix}", MAP, (3, 3), (2, 2), padding=(1, 1), **rest)
        yield case(f"ceil{suffix}", (2, 3, 8, 6), (3, 3), (2, 2), padding=(1, 1), ceil_mode=True, **rest)
        yield case(f"rectangular{suffix}", MAP, (2, 3), (3, 2), padding=(0, 1), **rest)
    # A dropped last window, and a last window that hangs over the far padding.
    yield case("ceil_dropped", MAP, (2, 2), (2, 2), padding=(1, 1), ceil_mode=True)
    yield case("ceil_hanging", MAP, (3, 3), (3, 3), padding=(0, 1), ceil_mode=True)


def adaptive_avg_pool2d():
    for h, w in ((1, 1), (3, 2), (5, 4), (7, 5), (9, 6)):
        yield run(
            f"adaptive_avg_pool2d.{h}x{w}",
            "adaptive_avg_pool2d",
            F.adaptive_avg_pool2d,
            {"input": MAP},
            {"output_size": (h, w)},
        )


def local_response_norm():
    for name, params in (
        ("alexnet", {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}),
        ("strong", {"size": 5, "alpha": 2.0, "beta": 0.75, "k": 1.0}),
        ("even", {"size": 4, "alpha": 1.0, "beta": 0.5, "k": 1.0}),
    ):
        # Four times u, so that AlexNet's small alpha shows in the digits that f32 keeps.
        shapes = {"input": (2, 7, 3, 3)}
        yield run(f"lrn.{name}", "local_response_norm", F.local_response_norm, shapes, params, scale=4.0)


def activations():
    for name, function, params in (
        ("relu", F.relu, {}),
        ("relu6", F.relu6, {}),
        ("leaky_relu", F.leaky_relu, {"negative_slope": 0.1}),
        ("sigmoid", torch.sigmoid, {}),
        ("tanh", torch.tanh, {}),
        ("gelu", F.gelu, {"approximate": "none"}),
        ("silu", F.silu, {}),
        ("hardswish", F.hardswish, {}),
        ("hardsigmoid", F.hardsigmoid, {}),
    ):
        # Eight times u reaches both sides of every piece.
        document = run(f"activation.{name}", name, function, {"input": (2, 3, 4, 3)}, params, scale=8.0)
        xs = 8.0 * formula.tensor(f"activation.{name}.input", (2, 3, 4, 3))
        assert all((xs - kink).abs().min() > 1e-3 for kink in (-3, 0, 3, 6)), f"{name}: an input close to a kink"
        yield document


def gate():
    """Squeeze-and-excitation's product with a factor for each image and channel."""
    for name, xs in (("plain", MAP), ("one_pixel", (3, 4, 1, 1))):
        shapes = {"input": xs, "gate": (*xs[:2], 1, 1)}
        yield run(f"gate.{name}", "gate", lambda input, gate: input * gate, shapes, {})


def losses():
    n, classes = 5, 7
    weights = 1 + 0.5 * formula.tensor("cross_entropy.class_weights", (classes,))
    soft = torch.softmax(3 * formula.tensor("cross_entropy.soft_targets", (n, classes)), 1)
    hard = torch.arange(n) * 3 % classes

    def case(name, target, weight=None, label_smoothing=0.0):
        document = run(
            f"cross_entropy.{name}",
            "cross_entropy",
            lambda input, label_smoothing: F.cross_entropy(input, target, weight, label_smoothing=label_smoothing),
            {"input": (n, classes)},
            {"label_smoothing": label_smoothing},
            scale=4.0,
        )
        document["params"] |= {"target": target.tolist()}
        document["params"] |= {} if weight is None else {"weight": weight.tolist()}
        return document

    yield case("classes", hard)
    yield case("smoothed", hard, label_smoothing=0.1)
    yield case("weighted", hard, weights)
    yield case("weighted_smoothed", hard, weights, 0.1)
    yield case("soft", soft)
    yield case("soft_smoothed", soft, label_smoothing=0.1)
    yield case("soft_weighted_smoothed", soft, weights, 0.1)
    yield run("mse.mean", "mse_loss", F.mse_loss, {"input": (n, classes), "target": (n, classes)}, {})


def channels():
    xs = (2, 6, 3, 2)
    for groups in (2, 3):
        name = f"channel_shuffle.{groups}"
        yield run(name, "channel_shuffle", torch.channel_shuffle, {"input": xs}, {"groups": groups})
    for radix in (2, 3):
        yield run(
            f"radix_softmax.{radix}",
            "radix_softmax",
            lambda input, radix: input.view(2, radix, -1).softmax(1).view(input.shape),
            {"input": (2, 12, 1, 1)},
            {"radix": radix},
            scale=4.0,
        )
    yield run("flatten.plain", "flatten", lambda input: input.flatten(1), {"input": xs}, {})
    yield run(
        "concat.plain",
        "cat",
        lambda first, second, dim: torch.cat([first, second], dim),
        {"first": (2, 2, 3, 2), "second": (2, 3, 3, 2)},
        {"dim": 1},
    )
    # The parameter-free shortcut of the CIFAR ResNets: every second pixel, zero channels on both sides.
    yield run(
        "shortcut.option_a",
        "subsample + pad_channels",
        lambda input, stride, before, after: F.pad(input[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after)),
        {"input": (2, 2, 7, 5)},
        {"stride": 2, "before": 1, "after": 2},
    )


def main():
    torch.set_num_threads(1)
    print(formula.versions())
    families = (
        conv2d,
        batch_norm,
        max_pool2d,
        avg_pool2d,
        adaptive_avg_pool2d,
        local_response_norm,
        activations,
        gate,
        losses,
        channels,
    )
    for family in families:
        document = {"versions": formula.versions(), "cases": list(family())}
        # Seven digits are what an f32 holds.
        path = formula.write(f"crates/ops/tests/golden/{family.__name__}.json", document, ("cases",), digits=7)
        print(f"{path.name:26} {len(document['cases']):2} cases  {path.stat().st_size / 1024:5.1f} KiB")


if __name__ == "__main__":
    main()
