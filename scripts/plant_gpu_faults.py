#!/usr/bin/env python3
"""Puts faults into the code for GPUs, one at a time, and expects a test on the emulated GPU to fail for each.

    scripts/plant_gpu_faults.py [NAME ...]      all, or those named; --list prints the table of the README

Works on a copy of the files that git tracks, beside a build folder of its own (target/faults), and prints a line for each
fault: seen, with the first line of the failure, or NOT SEEN. Exit code 1 if one was not seen. Takes about two minutes a
fault on two cores.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target/faults/copy"
CUDA = "crates/ops/src/cuda/"

# name, what is wrong, file, text, what replaces it, test that sees it
FAULTS = [
    ("joined-handle", "the gradient of a joined handle has one element", "crates/ops/src/handle.rs",
     "uninitialised(handle.shape(),", "uninitialised(1,", "devices::two_gpus"),
    ("wait-host", "no wait before page-locked memory is written again", CUDA + "upload.rs",
     "        buffer.copied.synchronize().w()?;\n", "", "settings::batches_from_the_host"),
    ("wait-copy", "computing does not wait for the copy of a batch", CUDA + "upload.rs",
     "        computing.join(&self.stream).w()?;\n", "", "settings::batches_from_the_host"),
    ("wait-read", "a copy does not wait for those who read its target", CUDA + "upload.rs",
     "        self.stream.wait(&buffer.read).w()?;\n", "", "settings::batches_from_the_host"),
    ("wait-sum", "a sum over GPUs does not wait for its terms", CUDA + "nccl.rs",
     "            stream.join(&device.cuda_stream()).w()?;\n", "", "devices::two_gpus"),
    ("wait-summed", "computing does not wait for a sum over GPUs", CUDA + "nccl.rs",
     "            device.cuda_stream().wait(&done).w()?;\n", "            let _ = &done;\n", "devices::two_gpus"),
    ("reused-early", "the terms of a sum over GPUs are given back before they are read", CUDA + "nccl.rs",
     "        Ok(Box::new(move || {\n", "        drop(xs);\n        let xs = ();\n        Ok(Box::new(move || {\n", "devices::two_gpus"),
    ("descriptor", "the input's descriptor says NCHW", CUDA + "cudnn.rs",
     "set_tensor4d_descriptor(plan.x, NHWC,", "set_tensor4d_descriptor(plan.x, sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,",
     "settings::batches_from_the_host"),
    ("groups", "the number of groups is left out", CUDA + "cudnn.rs",
     "            checked(result::set_convolution_group_count(plan.conv, groups))?;\n", "", "settings::groups"),
    ("unsupported", "products of bf16 are to be summed in f16", CUDA + "cudnn.rs",
     "let compute = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;", "let compute = sys::cudnnDataType_t::CUDNN_DATA_HALF;",
     "settings::batches_from_the_host"),
    ("not-deterministic", "an algorithm is taken whose bits may differ each time", CUDA + "cudnn.rs",
     "                        && result.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC\n", "",
     "settings::batches_from_the_host"),
    ("barrier", "a barrier is missing between two steps of a block", CUDA + "rows.cu",
     re.compile(r"    BARRIER; +\\\n"), "    ; \\\n", "settings::kernels_meet"),
    ("out-of-bounds", "a thread writes one element behind the end", CUDA + "common.cu",
     "if (i < n) terms[i] = (int)labels", "if (i <= n) terms[i] = (int)labels", "settings::what_a_step_can_do"),
    ("leak", "memory is never given back", CUDA + "graph.rs",
     "    xs.apply_op1(Computed { values, backward })", "    std::mem::forget(values.clone());\n    xs.apply_op1(Computed { values, backward })",
     "settings::batches_from_the_host"),
]


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def main():
    names = sys.argv[1:]
    if names == ["--list"]:
        print("| fault | test that sees it |\n|---|---|")
        for name, what, *_, test in FAULTS:
            print(f"| `{name}`: {what} | `{test}` |")
        return
    COPY.mkdir(parents=True, exist_ok=True)
    for file in run(["git", "ls-files"], cwd=ROOT, check=True).stdout.split():
        (COPY / file).parent.mkdir(parents=True, exist_ok=True)
        if not (COPY / file).exists() or (COPY / file).read_bytes() != (ROOT / file).read_bytes():
            shutil.copy(ROOT / file, COPY / file)
    exports = run(["scripts/cuda_toolchain.sh", str(ROOT / "target/cuda-check/toolchain"), "check"], cwd=ROOT, check=True).stdout
    # The crates of the workspace are compiled quickly rather than well.
    quick = " ".join(f"--config 'profile.release.package.{crate}.opt-level=1'" for crate in ("zoo-ops", "zoo", "zoo-data", "zoo-trainer", "zoo-cli"))
    test = f"{exports}\nexport CARGO_TARGET_DIR={ROOT}/target/faults/build\ncargo test --release {quick} --no-default-features --features nccl --test emulated_gpu -- "
    unseen = []
    for name, what, file, text, other, filter in [fault for fault in FAULTS if not names or fault[0] in names]:
        path = COPY / file
        right = path.read_text()
        wrong = text.sub(other, right, count=1) if isinstance(text, re.Pattern) else right.replace(text, other, 1)
        assert wrong != right, f"{name}: the text to replace is not in {file}"
        path.write_text(wrong)
        done = run(["bash", "-c", test + filter], cwd=COPY)
        path.write_text(right)
        output = done.stdout + done.stderr
        if "running" not in output:
            sys.exit(f"{name}: does not build\n{output[-2000:]}")
        found = re.search(r"(emulated GPU: PROBLEM.*|error: .*|panicked at[^\n]*\n[^\n]*)", output)
        if done.returncode == 0:
            unseen.append(name)
        print(f"{'NOT SEEN' if done.returncode == 0 else 'seen':8}  {name:18} {filter:34} {found[0][:150] if found else ''}", flush=True)
    sys.exit(1 if unseen else 0)


if __name__ == "__main__":
    main()
