"""A loaded causal language model: its parts, its sites, and what is known about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from engramscope.errors import ModelError, SiteError
from engramscope.models.anatomy import Anatomy
from engramscope.models.find import Found, Phase, find, without_sites
from engramscope.models.interface import attention_configs
from engramscope.models.offload import saved_tensors
from engramscope.models.probe import SEQ, close, device_of, forward, random_tokens
from engramscope.models.site import SITE_SHAPES, SITES, Port, SiteAccess, exists_once, is_module_path, is_weights
from engramscope.models.weights import tensors_of
from engramscope.registry import nearest

if TYPE_CHECKING:
    from engramscope.models.selfcheck import SelfCheck

T = TypeVar("T")
Origin = Literal["bundled", "folder", "hub", "memory"]


@final
class Model:
    """A causal language model whose parts are known. Made by `load_model` or `Model.from_parts`.

    Attributes:
        hf: the model of transformers, in evaluation mode.
        tokenizer: its tokenizer; None if none was given.
        anatomy: sizes, paths, and refusals.
        name: how it was asked for.
        source: where it came from.
        revision: the revision of a hub model, if known.
        checks: the outcome of the self-checks at load; empty if they were not asked for.
    """

    __slots__ = (
        "_accesses",
        "_hash",
        "_known",
        "_paths",
        "_phases",
        "anatomy",
        "checks",
        "hf",
        "name",
        "revision",
        "source",
        "tokenizer",
    )

    hf: Any
    tokenizer: Any
    anatomy: Anatomy
    name: str
    source: Origin
    revision: str | None
    checks: tuple[SelfCheck, ...]
    _accesses: dict[tuple[str, int | None], SiteAccess]
    _hash: str | None
    _paths: tuple[dict[str, int], dict[str, str]]
    _phases: dict[str, Phase]
    _known: dict[str, Any]

    def __init__(
        self, hf: Any, tokenizer: Any, found: Found, *, name: str, source: Origin, revision: str | None = None
    ) -> None:
        values = {
            "hf": hf, "tokenizer": tokenizer, "anatomy": found.anatomy, "name": name, "source": source,
            "revision": revision, "checks": (), "_accesses": dict(found.accesses), "_hash": None,
            "_paths": (dict(found.widths), dict(found.not_patchable)), "_phases": dict(found.phases), "_known": {},
        }  # fmt: skip
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Model is not changed after it was loaded (tried to set {name!r})")

    @classmethod
    def from_parts(
        cls, hf: Any, tokenizer: Any = None, *, name: str = "model", check: bool = True, source: Origin = "memory",
        revision: str | None = None,
    ) -> Model:  # fmt: skip
        """A model that is already in memory, for example one that was just fine-tuned.

        `hf` itself is used, not a copy: it is put into evaluation mode and set to eager attention. Hooks that are on
        it stay.

        Args:
            hf: a causal language model of transformers.
            tokenizer: its tokenizer, if texts are to be used.
            name: how it is to be called.
            check: run the self-checks.
            source: where it came from.
            revision: the revision of a hub model.

        Raises:
            ModelError: its parts cannot be told apart.
            CheckError: a self-check fails, so results would not be trustworthy.
        """
        from engramscope.models.selfcheck import ensure_sound, self_checks, unsound_sites

        hf.eval()
        _use_eager_attention(hf)
        _ensure_decoder(hf, name)
        found = find(hf)
        model = cls(hf, tokenizer, found, name=name, source=source, revision=revision)
        if not check:
            return model
        checks = tuple(self_checks(model))
        ensure_sound(name, checks)
        if unsound := unsound_sites(checks):
            model = cls(hf, tokenizer, without_sites(found, unsound), name=name, source=source, revision=revision)
        object.__setattr__(model, "checks", checks)
        return model

    @property
    def device(self) -> torch.device:
        """The device that token ids are expected on."""
        return device_of(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks."""
        return tuple(self.hf.get_submodule(path) for path in self.anatomy.blocks)

    @property
    def first_block(self) -> nn.Module:
        """The first block."""
        return self.hf.get_submodule(self.anatomy.blocks[0])

    @property
    def sites(self) -> tuple[str, ...]:
        """The named sites that this model offers, in reading order."""
        return tuple(site for site in SITES if site not in self.anatomy.refusals)

    @property
    def module_paths(self) -> tuple[str, ...]:
        """The modules that can be patched by their path."""
        return tuple(self._paths[0])

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, seq, vocab] of token ids [batch, seq] (no padding), without gradients."""
        with torch.no_grad():
            return self.hf(input_ids=tokens.to(self.device), use_cache=False).logits

    def site(self, site: str, layer: int | None = None) -> SiteAccess:
        """How the value at a site is reached.

        Args:
            site: a named site, or a module path; `{layer}` in a path stands for the layer.
            layer: the block, counted from 0; None for `embed`, `final_norm`, `logits` and paths without `{layer}`.

        Returns:
            What `taps` takes. A port with `head_columns` gives its whole width; the columns say where each head is.

        Raises:
            SiteError: no such site, layer or module (names the nearest), or the model does not offer it (says why).
        """
        if is_module_path(site) and "." not in site and site not in dict(self.hf.named_modules()):
            raise SiteError(_unknown_site(site, self.module_paths))
        self._check_layer(site, layer)
        if is_module_path(site):
            return self._module_port(site.replace("{layer}", str(layer)))
        if site in self.anatomy.refusals:
            raise SiteError(f"{self.name} does not offer {site}: {self.anatomy.refusals[site]}")
        return self._accesses[site, layer]

    def offers(self, site: str, layer: int | None = None) -> None:
        """Check that a value can be read and replaced at a site, or that the weights of a part can be transplanted.

        Raises:
            SiteError: no such site, layer, part or module, or the model does not offer it (says why).
        """
        if is_weights(site):
            self._check_layer(site, layer)
            self.tensors(site, layer)
        else:
            self.site(site, layer)

    def tensors(self, site: str, layer: int | None = None) -> tuple[str, ...]:
        """Names of the tensors that a weight site (`weights:mlp`) stands for.

        Raises:
            SiteError: no such part or module, or it holds no weights of its own.
        """
        return self.remember(f"{site} {layer}", lambda: tensors_of(self, site, layer))

    def shape(self, site: str) -> tuple[str | int, ...]:
        """The shape of a site's value, with the sizes of this model: ("batch", "seq", 12, 64) for `z` of GPT-2.

        Raises:
            SiteError: as in `site`.
        """
        layer = None if exists_once(site) else 0
        access = self.site(site, layer)
        if is_module_path(site):
            assert isinstance(access, Port)
            return ("batch", "seq", self._paths[0][access.path])
        sizes = {
            "n_heads": self.anatomy.n_heads, "n_kv_heads": self.anatomy.n_kv_heads, "d_model": self.anatomy.d_model,
            "d_head": self.anatomy.d_head, "d_mlp": self.anatomy.d_mlp, "vocab": self.anatomy.vocab,
        }  # fmt: skip
        return tuple(sizes.get(word) or word for word in SITE_SHAPES[site])

    def phase(self, path: str) -> Phase:
        """When a module that can be patched by its path has its output: "stem", its block, "tail" or "between"."""
        return self._phases.get(path, "between")

    def remember(self, what: str, find_out: Callable[[], T]) -> T:
        """What was once found out about this model; `find_out` is called the first time only."""
        if what not in self._known:
            self._known[what] = find_out()
        return self._known[what]

    def weight_hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights and buffers that are saved.

        Computed once for a model that was loaded; every time for one in memory, which may be trained on.
        """
        known = self._hash
        if known is None or self.source == "memory":
            known = hash_of(saved_tensors(self.hf))
            object.__setattr__(self, "_hash", known)
        return known

    def weights_changed(self, known: str | None = None) -> None:
        """Told by whoever changes weights of a model that was loaded.

        Args:
            known: the hash of the weights as they are now, where they were put back to what they were.
        """
        object.__setattr__(self, "_hash", known)

    def __repr__(self) -> str:
        a = self.anatomy
        groups = "" if a.n_kv_heads == a.n_heads else f" ({a.n_kv_heads} key/value heads)"
        refused = f"; not offered: {', '.join(a.refusals)}" if a.refusals else ""
        return (
            f"<Model {self.name!r}: {a.model_type}, {a.n_layers} layers, {a.n_heads} heads{groups}, "
            f"d_model {a.d_model}, vocab {a.vocab}, {str(self.dtype).removeprefix('torch.')} on {self.device}{refused}>"
        )

    def _check_layer(self, site: str, layer: int | None) -> None:
        count, per_layer = self.anatomy.n_layers, not exists_once(site)
        if per_layer and layer is None:
            raise SiteError(f"Site {site} exists in every layer; say which of the layers 0 to {count - 1} is meant.")
        if not per_layer and layer is not None:
            raise SiteError(f"Site {site} exists once, not once per layer; leave the layer out (got {layer}).")
        if layer is not None and not 0 <= layer < count:
            raise SiteError(f"There is no layer {layer}: {self.name} has {count} layers, 0 to {count - 1}.")

    def _module_port(self, path: str) -> Port:
        widths, others = self._paths
        if path in widths:
            return Port(path, self.hf.get_submodule(path), "output")
        if path in others:
            raise SiteError(f"The module {path} cannot be patched: {others[path]}.")
        if path in dict(self.hf.named_modules()):
            raise SiteError(f"The module {path} cannot be patched: it is not called in a forward.")
        raise SiteError(_unknown_site(path, tuple(widths)))


def hash_of(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names (pairs must be in it).

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()) if isinstance(tensors, Mapping) else tensors:
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        # the bytes of one tensor at a time; a view as bytes because numpy has no bfloat16
        digest.update(value.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unknown_site(path: str, known: tuple[str, ...]) -> str:
    if "." in path:
        hint = nearest(path, known).split(" Known:")[0]
        return f"The model has no module {path}{hint if hint != '.' else '.'}"
    return f"Unknown site {path!r}{nearest(path, SITES)} A module path has dots, for example {known[-1]}."


def _ensure_decoder(hf: Any, name: str) -> None:
    """Refuse encoders: in a causal model a later token does not change what comes before it."""
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({hf.config.model_type}); Engramscope needs a decoder.")
    tokens = random_tokens(hf, 2, SEQ, seed=5)
    tokens[1, :-1] = tokens[0, :-1]
    if tokens[0, -1] == tokens[1, -1]:
        tokens[1, -1] = tokens[0, 0]
    try:
        logits = forward(hf, tokens)
    except (RuntimeError, NotImplementedError) as error:
        dtype = str(hf.get_input_embeddings().weight.dtype).removeprefix("torch.")
        raise ModelError(f"{name} cannot be run in {dtype}: {' '.join(str(error).split())[:200]}") from None
    if not close(logits[1, :-1], logits[0, :-1], ulps=4096 if logits.dtype in (torch.float32, torch.float64) else 32):
        raise ModelError(
            f"{name} is not causal: a later token changes the logits of earlier ones ({hf.config.model_type} looks "
            "like an encoder); Engramscope needs a causal language model."
        )


def _use_eager_attention(hf: Any) -> None:
    if all(config._attn_implementation == "eager" for config in attention_configs(hf)):
        return
    hf.set_attn_implementation("eager")
