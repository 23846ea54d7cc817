"""Inference engines of others on the same weights, each optional: one module per peer that offers what `Peer` asks for."""

from __future__ import annotations

from sentinel.measure.peers import ctranslate2_generator, llama_cpp_python, onnx_runtime, openvino_runtime
from sentinel.measure.peers.peer import Peer, PeerSettings, Runner, is_installed

__all__ = ["PEERS", "Peer", "PeerSettings", "Runner", "is_installed"]

PEERS: tuple[Peer, ...] = (llama_cpp_python, onnx_runtime, ctranslate2_generator, openvino_runtime)
