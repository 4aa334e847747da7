"""Decoders of the Llama family from Hugging Face checkpoint folders.

hub.resolve_model(name) -> Path                            a folder, a hub id or "builtin" to a checkpoint folder
registry.load_config(folder, max_model_len) -> ModelConfig    no torch
config.load_generation_config(folder) -> GenerationConfig     no torch
checkpoint.model_hash(folder, config) -> str                  no torch
loader.load_model(folder, config, dtype, device, progress) -> CausalLM
"""
