"""A stand-in of the Hugging Face hub: an HTTP server on loopback with the routes that huggingface_hub uses, and in it the
releases of the presets: true repositories, file names and keys, tiny random weights."""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

D, WIDTH = 16, 48
LARGE = (".safetensors", ".npz", ".pt", ".bin")  # kept outside git, behind a redirect


class Hub:
    """Repositories by name, each a dict of files, at one commit that follows from its files."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.history: dict[tuple[str, str], dict[str, bytes]] = {}  # (repository, commit) -> its files
        self.large: dict[str, bytes] = {}  # SHA-256 -> content
        self.gated: set[str] = set()
        self.short: set[str] = set()  # files of which only half arrives
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.then: Callable[[], None] | None = None  # done once, after the next file without a redirect was sent
        hub = self

        class Handler(_Handler):
            def do_HEAD(self) -> None:
                self.answer(hub, body=False)

            def do_GET(self) -> None:
                self.answer(hub, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.elsewhere = self.url.replace("127.0.0.1", "localhost")  # large files come from another host, as on the hub
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        """Add or replace files of a repository; datasets are called datasets/owner/name."""
        self.repos[repo] = self.repos.get(repo, {}) | files
        self.history[repo, self.commit(repo)] = self.repos[repo]
        self.large |= {_sha256(content): content for name, content in files.items() if name.endswith(LARGE)}

    def add_folder(self, repo: str, folder: Path, under: str = "") -> None:
        self.add(
            repo, {under + f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        )

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.repos[repo].items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()

    def at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a repository at main or a commit."""
        latest = revision in {"main", self.commit(repo)}
        return self.repos[repo] if latest else self.history.get((repo, revision))

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return [path for method, path in self.requests if method == "GET" and not path.startswith("/api/")]

    @contextmanager
    def pointed_at(self, cache: Path, offline: bool = False) -> Iterator[None]:
        """This process's huggingface_hub asks here and keeps what it gets in `cache`.

        It reads HF_ENDPOINT and the others once, when it is first imported, which in a test run has long happened.
        """
        from huggingface_hub import constants

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_PROXY", "127.0.0.1,localhost")
            patch.setattr(constants, "ENDPOINT", self.url)
            patch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
            )
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            yield

    def environment(self, home: Path) -> dict[str, str]:
        """The same for a process that is about to start."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, hub: Hub, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        if path.startswith("/large/"):
            content = hub.large[path.removeprefix("/large/")]
            short = any(files.get(name) == content for files in hub.repos.values() for name in hub.short)
            return self.send(200, content, {}, body, short)
        if path.startswith("/api/"):
            return self.api(hub, path.removeprefix("/api/"), body)
        repo, resolve, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        refused = self.refused(hub, repo, revision) if resolve else "EntryNotFound"
        content = None if refused else (hub.at(repo, revision) or {}).get(file)
        commit = "" if refused else hub.commit(repo) if revision == "main" else revision
        if refused or content is None:
            return self.refuse(refused or "EntryNotFound", {"X-Repo-Commit": commit} if commit else {}, body)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.endswith(LARGE):
            digest = _sha256(content)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"', "ETag": f'"{digest}"'}
            return self.send(302, b"", headers | {"Location": f"{hub.elsewhere}/large/{digest}"}, body)
        headers["ETag"] = '"' + hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest() + '"'
        self.send(200, content, headers, body, short=file in hub.short)
        if body and hub.then is not None:
            then, hub.then = hub.then, None
            then()
        return None

    def api(self, hub: Hub, path: str, body: bool) -> None:
        """models/<repo>[/revision/<rev>] and models/<repo>/tree/<rev>[/<folder>], and the same of datasets."""
        if path.partition("/")[0] not in {"models", "datasets"}:
            return self.refuse("NotHere", {}, body)
        kind, owner, name, *rest = path.split("/")
        repo = f"{'datasets/' if kind == 'datasets' else ''}{owner}/{name}"
        what, revision, *folder = (*rest, "", "main")[:2] if len(rest) < 2 else rest
        if refused := self.refused(hub, repo, revision):
            return self.refuse(refused, {}, body)
        files = hub.at(repo, revision) or {}
        if what == "tree":
            found = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in sorted(files.items()) if n.startswith("/".join(folder))
            ]  # fmt: skip
            if not found:
                return self.refuse("EntryNotFound", {}, body)
            return self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)
        found = {
            "id": repo.removeprefix("datasets/"), "sha": hub.commit(repo) if revision == "main" else revision, "private": False, "gated": False, "tags": [],
            "downloads": 0, "siblings": [{"rfilename": n} for n in sorted(files)],
        }  # fmt: skip
        return self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)

    def refused(self, hub: Hub, repo: str, revision: str) -> str | None:
        if repo not in hub.repos:
            return "RepoNotFound"
        if repo in hub.gated:
            return "GatedRepo"
        return "RevisionNotFound" if hub.at(repo, revision) is None else None

    def refuse(self, why: str, headers: dict[str, str], body: bool) -> None:
        status = {"RepoNotFound": 401, "GatedRepo": 403}.get(why, 404)
        self.send(status, b"", headers | {"X-Error-Code": why, "X-Error-Message": why}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool, short: bool = False) -> None:
        wanted = self.headers.get("Range")
        if wanted and status == 200:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(content)
            headers = headers | {"Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            content, status = content[int(first) : end], 206
        if body and short:
            content = content[: len(content) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- releases ----------------------------------------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, Tensor]:
    """Random weights by SAELens' names; decoder rows differ in norm."""
    return {
        "W_enc": numbers(D, WIDTH, seed=2) / D**0.5, "b_enc": numbers(WIDTH, seed=3) * 0.2,
        "W_dec": numbers(WIDTH, D, seed=4) * torch.linspace(0.2, 1, WIDTH)[:, None], "b_dec": numbers(D, seed=5),
    }  # fmt: skip


def threshold() -> Tensor:
    return torch.linspace(0.05, 0.6, WIDTH)


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


# The flat configuration of SAELens before version 6, as the release has it.
GPT2_CFG = {
    "model_name": "gpt2-small", "hook_point": "blocks.6.hook_resid_pre", "hook_point_layer": 6,
    "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False,
    "context_size": 128, "use_cached_activations": False, "d_in": D, "n_batches_in_buffer": 128,
    "total_training_tokens": 300000000, "store_batch_size": 32, "device": "cpu", "seed": 42, "dtype": "torch.float32",
    "b_dec_init_method": "geometric_median", "expansion_factor": WIDTH // D, "from_pretrained_path": None,
    "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": "constantwithwarmup", "lr_warm_up_steps": 5000,
    "train_batch_size": 4096, "use_ghost_grads": True, "feature_sampling_window": 1000,
    "dead_feature_threshold": 1e-08, "d_sae": WIDTH, "tokens_per_buffer": 67108864,
}  # fmt: skip


def add_gpt2_res_jb(hub: Hub, folder: str = "blocks.6.hook_resid_pre", **cfg: Any) -> None:
    tensors = weights() | {"scaling_factor": torch.ones(WIDTH)}
    hub.add("jbloom/GPT2-Small-SAEs-Reformatted", {
        f"{folder}/cfg.json": as_json(GPT2_CFG | cfg),
        f"{folder}/sae_weights.safetensors": safetensors_bytes(tensors),
        f"{folder}/sparsity.safetensors": safetensors_bytes({"sparsity": torch.zeros(WIDTH)}),
    })  # fmt: skip


def add_gemma_scope(
    hub: Hub, place: str = "layer_12/width_16k/average_l0_82", repo: str = "google/gemma-scope-2b-pt-res"
) -> None:
    arrays = {name: t.numpy() for name, t in (weights() | {"threshold": threshold()}).items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    hub.add(repo, {f"{place}/params.npz": file.getvalue(), "README.md": b"# Gemma Scope"})


def add_gemma_transcoder(hub: Hub) -> None:
    add_gemma_scope(hub, "layer_12/width_16k/average_l0_6", "google/gemma-scope-2b-pt-transcoders")


def add_gemma_scope_2(hub: Hub) -> None:
    tensors = {name.replace("W_", "w_"): t for name, t in (weights() | {"threshold": threshold()}).items()}
    config = {
        "hf_hook_point_in": "model.layers.13.output", "hf_hook_point_out": "model.layers.13.output", "width": WIDTH,
        "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 60, "affine_connection": False,
        "type": "sae",
    }  # fmt: skip
    place = "resid_post/layer_13_width_16k_l0_medium"
    hub.add("google/gemma-scope-2-1b-pt", {
        f"{place}/config.json": as_json(config), f"{place}/params.safetensors": safetensors_bytes(tensors),
    })  # fmt: skip


LLAMA_FACTOR = 5.91907514450867  # of llama_scope_lxr_8x/l15r_8x, in SAELens' registry


def add_llama_scope(hub: Hub, factor: float = LLAMA_FACTOR) -> None:
    w = weights()
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
    }
    norm = D**0.5 / factor
    config = {
        "d_model": D, "d_sae": WIDTH, "use_decoder_bias": True, "use_glu_encoder": False, "act_fn": "jumprelu",
        "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise", "top_k": 50, "expansion_factor": WIDTH // D,
        "dataset_average_activation_norm": {"in": norm, "out": norm}, "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post", "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    place = "Llama3_1-8B-Base-L15R-8x"
    hub.add("fnlp/Llama3_1-8B-Base-LXR-8x", {
        f"{place}/hyperparams.json": as_json(config), f"{place}/lm_config.json": as_json({"model_name": "meta-llama/Llama-3.1-8B"}),
        f"{place}/checkpoints/final.safetensors": safetensors_bytes({name: t.contiguous() for name, t in tensors.items()}),
    })  # fmt: skip


def add_sparsify(hub: Hub) -> None:
    w = weights()
    tensors = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    files = {"config.json": as_json({
        "sae": {"expansion_factor": 32, "normalize_decoder": True, "num_latents": WIDTH, "k": 8}, "batch_size": 8,
        "model": "EleutherAI/pythia-160m", "dataset": "EleutherAI/the_pile_deduplicated", "ctx_len": 2049, "split": "train",
    })}  # fmt: skip
    for module in ("layers.6", "layers.6.mlp"):
        files[f"{module}/cfg.json"] = as_json(
            {"expansion_factor": 32, "normalize_decoder": True, "num_latents": WIDTH, "k": 8, "d_in": D}
        )
        files[f"{module}/sae.safetensors"] = safetensors_bytes(tensors)
    hub.add("EleutherAI/sae-pythia-160m-32k", files)


def add_dictionary_learning(hub: Hub) -> None:
    w = weights()
    state = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "b_dec": w["b_dec"],
    }
    file = io.BytesIO()
    torch.save({name: t.contiguous() for name, t in state.items()} | {"k": torch.tensor(8)}, file)
    trainer = {
        "trainer_class": "TrainerTopK", "dict_class": "AutoEncoderTopK", "lr": 0.0002, "steps": 48828, "seed": 0,
        "activation_dim": D, "dict_size": WIDTH, "k": 8, "device": "cuda:0", "layer": 4, "lm_name": "EleutherAI/pythia-70m-deduped",
        "wandb_name": "TopKTrainer", "submodule_name": "resid_post_layer_4",
    }  # fmt: skip
    buffer = {
        "d_submodule": D,
        "io": "out",
        "n_ctxs": 2048,
        "ctx_len": 128,
        "refresh_batch_size": 32,
        "out_batch_size": 4096,
        "device": "cuda:0",
    }
    place = "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_4/trainer_13"
    hub.add("canrager/lm_sae", {
        f"{place}/ae.pt": file.getvalue(), f"{place}/config.json": as_json({"trainer": trainer, "buffer": buffer}),
        f"{place}/eval_results.json": as_json({"l0": 8.0}),
    })  # fmt: skip


def add_everything(hub: Hub) -> None:
    for add in (
        add_gpt2_res_jb, add_gemma_scope, add_gemma_transcoder, add_gemma_scope_2, add_llama_scope, add_sparsify,
        add_dictionary_learning,
    ):  # fmt: skip
        add(hub)


# What the presets' subjects are on the hub: their family, and a number of layers that has their hookpoint.
SUBJECTS = {
    "openai-community/gpt2": ("gpt2", {"n_layer": 7}),
    "google/gemma-2-2b": ("gemma2", {"num_hidden_layers": 13}),
    "google/gemma-3-1b-pt": ("gemma3_text", {"num_hidden_layers": 14}),
    "meta-llama/Llama-3.1-8B": ("llama", {"num_hidden_layers": 16}),
    "EleutherAI/pythia-160m": ("gpt_neox", {"num_hidden_layers": 7}),
}
DATASETS = ("HuggingFaceFW/fineweb", "NeelNanda/pile-10k")


def add_subjects(hub: Hub, folder: Path, tokenizer: Path) -> None:
    """Random models of each family, with their weights and one tokenizer, under the names of the presets' subjects."""
    from . import families

    for repo, (family, layers) in SUBJECTS.items():
        hub.add_folder(repo, families.save(family, folder / repo, vocabulary=400, d=D, positions=512, **layers))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            hub.add(repo, {name: (tokenizer / name).read_bytes()})
    for name in DATASETS:
        hub.add(f"datasets/{name}", {"README.md": name.encode()})
