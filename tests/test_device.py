"""The choice of device: no silent CPU run, no failure for want of a compiler, no names in records."""

import getpass
import json
import socket
import warnings

import pytest
import torch

from vitlib import device
from vitlib.errors import UserError

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine without CUDA or MPS, with no preference set; each test adds what it needs."""
    monkeypatch.delenv("CIFAR_VIT_DEVICE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "_nvidia_gpu_present", lambda: False)
    device.can_compile.cache_clear()
    yield
    device.can_compile.cache_clear()


def gpu_that_computes(monkeypatch, count=1):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(1))


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    assert device.pick() == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.pick() == MPS
    gpu_that_computes(monkeypatch)
    assert device.pick() == CUDA


def test_the_variable_decides_for_auto_only(monkeypatch):
    gpu_that_computes(monkeypatch)
    monkeypatch.setenv("CIFAR_VIT_DEVICE", "cpu")
    assert device.pick() == CPU
    assert device.pick("cuda") == CUDA


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "显卡"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="不认识的设备"):
        device.pick(name)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="CIFAR_VIT_DEVICE=cpu"):
        device.pick(name)


def test_a_gpu_number_that_is_not_there_is_refused(monkeypatch):
    gpu_that_computes(monkeypatch, count=2)
    assert device.pick("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="只有 2 块"):
        device.pick("cuda:2")


def old_driver():
    warnings.warn("The NVIDIA driver on your system is too old (found version 11040).\nmore", stacklevel=1)
    return False


def test_an_old_driver_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(device, "_nvidia_gpu_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with pytest.raises(UserError, match=r"found version 11040.*更新到支持 CUDA 13.2") as error:
        device.pick()
    assert "\n" not in str(error.value) and "CIFAR_VIT_DEVICE=cpu" in str(error.value)
    monkeypatch.setenv("CIFAR_VIT_DEVICE", "cpu")
    assert device.pick() == CPU


def test_a_cpu_build_beside_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(device, "_nvidia_gpu_present", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="CPU 版"):
        device.pick()


def test_a_gpu_without_kernels_is_an_error(monkeypatch):
    def no_kernel(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", no_kernel)
    with pytest.raises(UserError, match="no kernel image is available") as error:
        device.pick()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("script", "seen"), [("echo 'GPU 0: NVIDIA H100'", True), ("exit 9", False)])
def test_nvidia_smi_is_asked_where_there_are_no_nodes(monkeypatch, tmp_path, script, seen):
    monkeypatch.undo()  # the real _nvidia_gpu_present
    monkeypatch.setattr(device.Path, "glob", lambda self, pattern: iter(()))
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device._nvidia_gpu_present() is seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device._nvidia_gpu_present() is False


def test_cudnns_attention_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert device.pick().type == "cuda" and not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_bf16_needs_compute_capability_8(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.autocast_dtype(CUDA) is dtype
    assert device.autocast_dtype(MPS) is None


@pytest.mark.parametrize(("bf16", "amx", "dtype"), [
    (False, False, None), (True, False, torch.bfloat16), (False, True, torch.bfloat16), (None, None, None),
])  # fmt: skip
def test_bf16_on_a_cpu_needs_the_instructions(monkeypatch, bf16, amx, dtype):
    for name, value in (("_is_avx512_bf16_supported", bf16), ("_is_amx_tile_supported", amx)):
        if value is None:  # another version of PyTorch may not have the probe
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert device.autocast_dtype(CPU) is dtype


@pytest.mark.parametrize("where", [CPU, CUDA])
def test_no_compiler_means_eager_with_one_line(monkeypatch, capsys, tmp_path, where):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    assert not device.can_compile(where)
    assert not device.can_compile(where)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "没有找到 C++ 编译器" in err


def test_what_compiling_needs(monkeypatch, capsys, tmp_path):
    for name in ("g++", "gcc"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    include = tmp_path / "include"
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(include))
    assert not device.can_compile(CPU)
    assert "Python.h" in capsys.readouterr().err
    include.mkdir()
    (include / "Python.h").touch()
    device.can_compile.cache_clear()
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert device.can_compile(CPU)
    assert not device.can_compile(CUDA)
    assert "triton" in capsys.readouterr().err


def test_describe_names_the_machine_but_neither_host_nor_user():
    told = device.describe(CPU)
    assert list(told) == ["name", "threads", "torch", "python", "platform", "dtype"]
    assert told["threads"] == torch.get_num_threads() and told["torch"] == torch.__version__ and told["name"]
    words = set(json.dumps(told).replace('"', " ").split())
    assert socket.gethostname() not in words and getpass.getuser() not in words
