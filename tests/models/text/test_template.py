"""Records become token ids: where the prompt ends, special tokens, chat templates, and TRL's own ids for the same rows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate
from diffalign.models.text.template import Template, read_chat_template
from diffalign.models.text.truncation import Limit
from tests.models.text.models import rows, tokenizer
from tests.models.text.tables import chat_record, lists, real_records, text_record

BOS, END = 1, 2  # of `letters`


def letters(merges=(), *, before="<s> ", after="", bos="<s>", eos="</s>") -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters (a is 4, b is 5, ...) and `merges`, which come after them."""
    words = ["<unk>", "<s>", "</s>", "|", *"abcdefgh ", *("".join(pair) for pair in merges)]
    inner = Tokenizer(BPE({word: i for i, word in enumerate(words)}, list(merges), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("|", "isolated")
    inner.post_processor = processors.TemplateProcessing(single=f"{before}$A{after}", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{name: token for name, token in special.items() if token})


def ids(made: PreTrainedTokenizerFast, record):
    return lists(Template(made).encode([record])[0])


def chatting(template):
    """Return a tokenizer with a chat template."""
    made = tokenizer()
    made.chat_template = template
    return made


def test_a_text_is_prompt_and_completion_joined_as_they_are_and_ended_once():
    prompts, completions = ids(letters(), text_record("ab", "c", "d</s>"))
    assert prompts == [[BOS, 4, 5], [BOS, 4, 5]]
    assert completions == [[6, END], [7, END]]


def test_an_empty_completion_is_the_end_of_text_alone():
    assert ids(letters(), text_record("ab", "", "c")) == ([[BOS, 4, 5]] * 2, [[END], [6, END]])


def test_an_empty_prompt_is_the_beginning_of_text_whether_the_tokenizer_writes_it_or_not():
    for before in ("<s> ", ""):
        assert ids(letters(before=before), text_record("", "a", "b")) == ([[BOS], [BOS]], [[4, END], [5, END]])


def test_an_empty_prompt_is_the_end_of_text_where_nothing_begins_texts():
    assert ids(letters(before="", bos=None), text_record("", "a", "")) == ([[END], [END]], [[4, END], [END]])


def test_the_prompt_loses_the_tokens_that_merge_with_a_completion_for_all_candidates():
    made = letters([("b", "c")])  # bc is 13
    (record,) = Template(made).encode([text_record("ab", "c", "d")])
    assert lists(record) == ([[BOS, 4], [BOS, 4]], [[13, END], [5, 7, END]])
    assert record.lost == 1


def test_a_prompt_that_merges_away_leaves_the_beginning_of_text():
    (record,) = Template(letters([("b", "c")], before="")).encode([text_record("b", "c", "cd")])
    assert lists(record) == ([[BOS], [BOS]], [[13, END], [13, 7, END]])


def test_spaces_at_the_end_of_a_prompt_or_a_text_are_kept():
    assert ids(letters(), text_record("a ", "b ", " c")) == ([[BOS, 4, 12]] * 2, [[5, 12, END], [12, 6, END]])


def test_a_text_begins_once_even_where_the_prompt_itself_says_so():
    assert ids(letters(), text_record("<s><s>a", "b", "c"))[0] == [[BOS, 4], [BOS, 4]]
    assert ids(letters(before=""), text_record("<s>a", "b", "c"))[0] == [[BOS, 4], [BOS, 4]]


def test_a_tokenizer_that_closes_every_text_closes_prompts_of_nothing_and_completions_once():
    (record,) = Template(letters(after=" </s>")).encode([text_record("a", "b", "c")])
    assert lists(record) == ([[BOS, 4], [BOS, 4]], [[5, END], [6, END]])
    assert record.lost == 0


def test_one_token_may_both_begin_and_end_texts():
    made = letters(before="</s> ", bos="</s>")
    assert ids(made, text_record("a", "b", "")) == ([[END, 4]] * 2, [[5, END], [END]])
    assert ids(made, text_record("", "", "b")) == ([[END]] * 2, [[END], [5, END]])


@pytest.mark.parametrize("count", [1, 4])
def test_records_of_any_number_of_candidates_share_one_prompt(count):
    (record,) = Template(letters()).encode([text_record("a", *"bcde"[:count])])
    assert len(record.prompts) == 1
    assert lists(record) == ([[BOS, 4]] * count, [[5 + i, END] for i in range(count)])


def test_candidates_with_prompts_of_their_own_answer_those():
    own = (Candidate(text="b"), Candidate(text="c", prompt="ef"), Candidate(text="d", prompt=""))
    (record,) = Template(letters()).encode([text_record("a", candidates=own)])
    assert lists(record) == ([[BOS, 4], [BOS, 8, 9], [BOS]], [[5, END], [6, END], [7, END]])


def test_any_unicode_comes_back_from_its_tokens():
    made, texts = tokenizer(), ("naïve café 🎨🖌️", "東京\n\tno\u00a0break ", "\u202eright to left")
    (record,) = Template(made).encode([text_record("Ünïcode 👩‍🚀: ", *texts)])
    assert made.decode(record.prompts[0]) == "<|bos|>Ünïcode 👩‍🚀: "
    assert [made.decode(completion) for completion in record.completions] == [text + "<|im_end|>" for text in texts]


def test_a_tokenizer_without_padding_token_gives_the_same_ids():
    record = text_record("A photo of", " a circle", " a square")
    assert ids(tokenizer(pad=False), record) == ids(tokenizer(), record)


def test_a_tokenizer_without_end_of_text_is_refused_by_texts_and_not_by_conversations():
    made = tokenizer(eos=False)
    with pytest.raises(ConfigError, match="no end-of-text token"):
        Template(made).encode([text_record("a", "b", "c")])
    assert Template(made).encode([chat_record([("user", "a")], "b", "c")])[0].completions[0][-2] == 2  # <|im_end|>, then a new line


def test_a_conversation_is_written_by_the_template_from_its_first_turn_to_the_end_of_the_answer():
    made = tokenizer()
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Name a prime.")]
    (record,) = Template(made).encode([chat_record(turns, "7", "")])
    written = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert made.decode(record.prompts[0]) == f"<|bos|>{written}<|im_start|>assistant\n"
    assert [made.decode(completion) for completion in record.completions] == ["7<|im_end|>\n", "<|im_end|>\n"]
    assert record.prompts[0].tolist().count(made.bos_token_id) == 1


def test_a_candidates_own_prompt_takes_the_place_of_the_last_turn():
    made = tokenizer()
    own = (Candidate(text="7"), Candidate(text="9", prompt="Name a square."))
    (record,) = Template(made).encode([chat_record([("system", "Be kind."), ("user", "Name a prime.")], candidates=own)])
    ours, theirs = (made.decode(record.prompts[i]) for i in record.answers)
    assert theirs == ours.replace("Name a prime.", "Name a square.")


def test_a_template_that_was_read_from_a_file_writes_the_turns(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}")
    made = chatting(read_chat_template(str(path)))
    (record,) = Template(made).encode([chat_record([("user", "Hi")], "Hello", "Bye")])
    assert made.decode(record.prompts[0]) == "[user]Hi[assistant]"
    assert made.decode(record.completions[0]) == "Hello"


def test_a_template_that_writes_the_prompt_differently_alone_keeps_what_both_ways_share():
    thinks = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    made = chatting(thinks)
    (record,) = Template(made).encode([chat_record([("user", "Hi")], "Hello", "Bye")])
    assert made.decode(record.prompts[0]) == "[user]Hi[assistant]"
    assert record.lost == len(made("<think>", add_special_tokens=False).input_ids)


def test_a_conversation_without_a_template_is_refused_with_the_option_that_helps():
    with pytest.raises(ConfigError, match=r"rows.jsonl row 0 .*--chat_template"):
        Template(tokenizer(template=False)).encode([chat_record([("user", "a")], "b", "c")])


def test_what_a_template_cannot_write_is_refused_with_the_record_or_the_line():
    record = chat_record([("system", "Be kind."), ("user", "a")], "b", "c")
    cases = {
        "{{ raise_exception('no system turns') }}": (RecordError, "row 0: the chat template refuses .* system, user .*no system turns"),
        "{% for m in %}": (ConfigError, "no Jinja template .line 1"),
        "[prompt]": (RecordError, "row 0: the chat template writes nothing for the answer"),
    }
    for template, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            Template(chatting(template)).encode([record])


def test_a_template_file_that_is_missing_or_empty_is_refused(tmp_path):
    (tmp_path / "empty.jinja").write_text("\n")
    for name in ("missing.jinja", "empty.jinja"):
        with pytest.raises(ConfigError, match=f"chat_template: .*{name}"):
            read_chat_template(str(tmp_path / name))


def test_records_without_texts_are_refused_by_name():
    picture = replace(text_record("a", "b", "c"), candidates=(Candidate(image=b"1"), Candidate(image=b"2")))
    for record in (picture, text_record("a")):
        with pytest.raises(RecordError, match=f"row 0: this record is of kind {record.kind}"):
            Template(letters()).encode([record])


def test_a_prompt_to_answer_has_the_ids_it_has_in_training():
    template = Template(tokenizer())
    for record, made in zip(real_records(), template.encode(real_records()), strict=True):
        assert template.prompt_ids(replace(record, candidates=())).tolist() == made.prompts[0].tolist()


def trl_rows(made: PreTrainedTokenizerFast, values: list[dict], max_length: int | None = None) -> list[dict[str, list[int]]]:
    """Return what TRL's DPOTrainer makes of rows of one kind, by its own preparation."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    options = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    return list(DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=made), Dataset.from_list(values), made, options, "train"))


def trl_ids(made: PreTrainedTokenizerFast, values: list[dict]) -> list[tuple[list[list[int]], list[list[int]]]]:
    prepared = trl_rows(made, values)
    return [([row["prompt_ids"]] * 2, [row["chosen_ids"], row["rejected_ids"]]) for row in prepared]


@pytest.mark.parametrize("bos", [True, False])
def test_real_pairs_get_the_ids_that_trl_gives_them(bos):
    made = tokenizer(bos=bos)
    ours = [lists(record) for record in Template(made).encode(real_records())]
    assert ours == trl_ids(made, rows("plain")) + trl_ids(made, rows("chat"))


def test_awkward_pairs_get_the_ids_that_trl_gives_them():
    texts = [("ab", "c", "d"), ("abc", "cbc", ""), ("a ", " b", "b "), ("", "a", "bc</s>"), ("a|b", "c", "|")]
    made = letters([("b", "c"), ("a", "bc")])
    ours = Template(made).encode([text_record(*row) for row in texts])
    assert any(record.lost for record in ours)
    assert [lists(record) for record in ours] == trl_ids(made, [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts])


def test_truncation_keeps_and_cuts_what_trl_keeps_and_cuts():
    made, limit = tokenizer(), Limit(48)
    ours = [record for record in Template(made).encode(real_records()[:16]) if limit.admits(record)]
    theirs = trl_rows(made, rows("plain"), limit.max_length)
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    batch = DataCollatorForPreference(pad_token_id=0, max_length=limit.max_length)(theirs)
    answers = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    cut = [lists(limit.cut(record, made.bos_token_id)) for record in ours]
    assert 1 < len(ours) < 16
    assert any(len(ids) > 48 for record in theirs for ids in [record["prompt_ids"] + record["chosen_ids"]])
    assert [prompts[0] for prompts, _ in cut] == [row["prompt_ids"] for row in theirs]
    assert [completions[i] for i in (0, 1) for _, completions in cut] == answers
