"""A language model made on the spot: it writes no prose, but real engines run it like any other.

`python -m benchmarks._tiny_model FOLDER` writes one. Nothing is downloaded or trained. The weights are set so that a
word of an answer decides the next: an answer is one of `CHAIN_COUNT` chains of made-up words, ends by itself, and has
`answer_tokens` tokens. The whole prompt decides which chain it is; half of them are for shifts, so that no shift
repeats a summary. Different prompts mostly get different answers, and at temperature 0 a prompt gets the same answer
from every engine.
"""

import random
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from liber_feast.datasets import read_data_set
from liber_feast.interest import DescribedBehavior, Item, ShiftRequest, SummaryRequest
from liber_feast.prompt import Message, load_prompt, prompt_names

CHAIN_COUNT = 64
CONTEXT_TOKENS = 4096
END, SUMMARY_ANSWER, SHIFT_ANSWER = range(3)
SPECIAL = ("<|im_end|>", "<|assistant|>", "<|shift|>", "<|system|>", "<|user|>")
"""Special tokens by id. The chat template ends the prompt of a shift as no other."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|shift|>' if 'Previous summary: ' in messages[-1]['content'] else '<|assistant|>' }}{% endif %}"
)

HIDDEN, NORM = 64, 8.0
"""The width, and the length of a vector that RMSNorm gives: the root of the width."""
WORD_GAIN = 8.0
"""How much longer the embedding of an answer's word is: the next word then hardly depends on what attention adds."""
NEXT_GAIN, START_GAIN = 5.0, 4.0
"""How strongly a word asks for the next one, and a prompt for its chain."""
LIKE_ABOVE = 3.0


def make_tiny_model(folder: Path, *, answer_tokens: int = 16, repetition_penalty: float | None = None) -> Path:
    """Write a Qwen2 of two layers with its tokenizer and chat template to `folder`, and return it.

    `repetition_penalty` goes into its generation config, which engines are to follow: with one, no answer begins with a
    word of the prompt.
    """
    torch.manual_seed(0)
    words = _words(CHAIN_COUNT * (answer_tokens - 1))
    tokenizer = _tokenizer(words)
    ids = torch.tensor([_id_of(word, tokenizer) for word in words]).reshape(CHAIN_COUNT, answer_tokens - 1)
    model = _random_model(len(tokenizer))
    with torch.no_grad():
        _chain(model, ids, starts=_directions(model, tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=END, pad_token_id=END, repetition_penalty=repetition_penalty
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def first_words(*, answer_tokens: int = 16) -> list[str]:
    """Return the words that summaries begin with, each with the space before it."""
    return _words(CHAIN_COUNT // 2 * (answer_tokens - 1))[:: answer_tokens - 1]


def _words(count: int) -> list[str]:
    """Return made-up words, each with the space before it."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" " + "".join(draw.choices(syllables, k=3))] = None
    return list(found)


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE that knows our prompts, the synthetic items and every word as one token."""
    prompts = [f"{prompt.system} {prompt.summary} {prompt.shift}" for prompt in map(load_prompt, prompt_names())]
    summaries = [message["content"] for messages in _summary_prompts(100) for message in messages]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*prompts, *summaries, *["".join(words)] * 2], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[END], pad_token=SPECIAL[END])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _id_of(word: str, tokenizer: PreTrainedTokenizerFast) -> int:
    (only,) = tokenizer.encode(word, add_special_tokens=False)
    return int(only)


def _random_model(vocabulary_size: int) -> Qwen2ForCausalLM:
    """Return a model whose embeddings are random directions and whose attention looks at few tokens at a time."""
    config = Qwen2Config(
        vocab_size=vocabulary_size,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).eval()
    spread = {"q_proj": 0.3, "k_proj": 0.3, "v_proj": 1 / NORM, "o_proj": 0.2}
    spread |= {"gate_proj": 1 / NORM, "up_proj": 1 / NORM, "down_proj": 0.02}
    with torch.no_grad():
        for name, weights in model.model.layers.named_parameters():
            projection = name.split(".")[-2]
            if projection in spread:
                weights.zero_() if name.endswith("bias") else weights.normal_(0, spread[projection])
        directions = torch.randn(vocabulary_size, HIDDEN)
        model.model.embed_tokens.weight.copy_(NORM * normalize(directions))
    return model


def _chain(model: Qwen2ForCausalLM, chains: Tensor, *, starts: Tensor) -> None:
    """Let the end of a prompt lead to the chain that is nearest, a word to the next, and the last one to END."""
    embeddings, logits = model.model.embed_tokens.weight, model.lm_head.weight
    embeddings[chains] *= WORD_GAIN
    last = normalize(torch.randn(HIDDEN), dim=0)
    embeddings[chains[:, -1]] = WORD_GAIN * NORM * last
    logits.zero_()
    logits[END] = NEXT_GAIN * last
    logits[chains[:, 1:]] = NEXT_GAIN * normalize(embeddings[chains[:, :-1]], dim=-1)
    before = torch.tensor([SUMMARY_ANSWER, SHIFT_ANSWER]).repeat_interleave(CHAIN_COUNT // 2)
    logits[chains[:, 0]] = NEXT_GAIN * embeddings[before] / NORM + START_GAIN * starts


def _directions(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return how the last states of as many prompts as there are chains differ: half are summaries, half shifts."""
    prompts = [*_summary_prompts(CHAIN_COUNT // 2), *_shift_prompts(CHAIN_COUNT // 2)]
    states = torch.stack([_last_state(messages, model, tokenizer) for messages in prompts]).unflatten(0, (2, -1))
    return normalize(states - states.mean(1, keepdim=True), dim=-1).flatten(0, 1)


def _last_state(messages: list[Message], model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return model.model(torch.tensor([ids])).last_hidden_state[0, -1]


def _summary_prompts(count: int) -> list[list[Message]]:
    """Return prompts about random films of the synthetic data set."""
    items = read_data_set("synthetic", users=1, behaviors=20, seed=0).items.to_pylist()
    draw = random.Random(1)
    prompt = load_prompt("movielens")
    return [
        prompt.render_summary(
            SummaryRequest(
                user_id=number,
                partition_index=0,
                profile="",
                behaviors=tuple(_behavior(row, draw) for row in draw.sample(items, draw.randint(2, 20))),
            )
        )
        for number in range(count)
    ]


def _shift_prompts(count: int) -> list[list[Message]]:
    """Return prompts about random words."""
    words, draw = _words(500), random.Random(2)
    prompt = load_prompt("movielens")
    return [
        prompt.render_shift(
            ShiftRequest(
                user_id=number,
                partition_index=1,
                previous_partition_index=0,
                previous_summary="".join(draw.sample(words, draw.randint(15, 60))),
                summary="".join(draw.sample(words, draw.randint(15, 60))),
                previous_behaviors=(),
                behaviors=(),
            )
        )
        for number in range(count)
    ]


def _behavior(row: dict[str, object], draw: random.Random) -> DescribedBehavior:
    item = Item(
        item_id=str(row["item_id"]),
        title=str(row["title"]),
        categories=tuple(row["categories"]),
        period=str(row["period"]),
        attributes={"creator": str(row["creator"])},
    )
    rating = draw.randint(1, 10) / 2
    time = datetime(draw.randint(2000, 2023), draw.randint(1, 12), draw.randint(1, 28), tzinfo=UTC)
    return DescribedBehavior(item=item, rating=rating, liked=rating > LIKE_ABOVE, event_time=time)


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1])))
