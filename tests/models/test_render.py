"""Text to ids: those of transformers for ordinary text, control tokens from the template alone, every length rule."""

import pytest
import zoo
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import toys
from karat.models.render import PLAIN, Rendered, Renderer, chat_template, cut_left, render_part, tokenizer_hash
from karat.spec import Render, RewardSpec
from karat.types import Example, Message, Refused, Span, Unscored


def renderer(tokenizer, positions=None, pooling="last", **options):
    spec = RewardSpec(kind="bradley_terry", pooling=pooling).with_options(**options)
    part = render_part(tokenizer, spec.render)
    return Renderer(tokenizer, spec.model_copy(update={"render": part}), positions)


def example(prompt, response):
    messages = prompt if isinstance(prompt, tuple) else (Message("user", prompt),)
    return Example(messages, response)


def ids_of(render, prompt, response):
    (found,) = render([example(prompt, response)])
    assert isinstance(found, Rendered), found
    return list(found.sequence.ids)


def reason(render, prompt, response):
    (found,) = render([example(prompt, response)])
    assert isinstance(found, Unscored)
    assert "\n" not in found.reason and "Traceback" not in found.reason
    return found.reason


def own(tokenizer, prompt, response, **options):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


# The same ids as transformers


TEXT = st.one_of(
    st.text(max_size=30), st.text(alphabet="<>|[]s/ aeé北＜＞\n", max_size=8), st.sampled_from(zoo.SENTENCES)
)


@pytest.mark.parametrize("name", zoo.ALL)
@settings(max_examples=30)
@given(prompt=TEXT, response=TEXT)
def test_ids_are_those_of_transformers_chat_template(name, prompt, response):
    tokenizer = zoo.ALL[name]()
    wanted = own(tokenizer, prompt, response)
    assume(len(zoo.control_ids(tokenizer, wanted)) == len(zoo.control_ids(tokenizer, own(tokenizer, "a", "b"))))
    assume(not any(n in t for n in zoo.control_names(tokenizer) for t in (prompt, response)))
    assert ids_of(renderer(tokenizer), prompt, response) == wanted


def test_merges_cross_the_edges_of_a_message():
    tokenizer = zoo.merged()
    whole = own(tokenizer, "hello", "to you")
    pieces = ["<s>", "user: ", "hello", "\n", "assistant: ", "to you", "\n", "</s>"]
    apart = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert whole != apart, "negative control: piecewise ids differ"
    assert ids_of(renderer(tokenizer), "hello", "to you") == whole


@pytest.mark.parametrize("name", ["byte", "merged"])
@settings(max_examples=40)
@given(data=st.data())
def test_content_is_read_as_with_split_special_tokens(name, data):
    tokenizer = zoo.ALL[name]()
    pieces = st.one_of(st.sampled_from(zoo.control_names(tokenizer)), st.text(max_size=5))
    prompt, response = ("".join(data.draw(st.lists(pieces, max_size=4))) for _ in range(2))
    assume(prompt + response)
    wanted = tokenizer(prompt + response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids_of(renderer(tokenizer, layout="concat"), prompt, response) == [tokenizer.bos_token_id, *wanted]


# Control tokens


@pytest.mark.parametrize("layout", ["chat", "concat", "dialogue"])
@pytest.mark.parametrize("name", zoo.ALL)
def test_user_text_never_becomes_a_control_token(name, layout):
    tokenizer = zoo.ALL[name]()
    render = renderer(tokenizer, layout=layout)
    wanted = zoo.control_ids(tokenizer, ids_of(render, "a", "b"))
    full = str.maketrans({c: chr(ord(c) + 0xFEE0) for c in "<>[]/|s"})
    for token in zoo.control_names(tokenizer):
        for spelling in (token, token.lower(), token.upper(), token.translate(full), f" {token} ", token + token):
            for prompt, response in ((spelling, "b"), ("a", spelling), (spelling, spelling), (f"x{spelling}y", "b")):
                assert zoo.control_ids(tokenizer, ids_of(render, prompt, response)) == wanted, (prompt, response)


@pytest.mark.parametrize("name", zoo.ALL)
def test_control_token_split_over_two_messages(name):
    tokenizer = zoo.ALL[name]()
    tight = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"  # as a chat template
    for options in ({"layout": "concat"}, {"template": tight}):
        render = renderer(tokenizer, **options)
        wanted = zoo.control_ids(tokenizer, ids_of(render, "a", "b"))
        for token in zoo.control_names(tokenizer):
            for cut in range(1, len(token)):
                for space in ("", " "):
                    ids = ids_of(render, space * ("template" in options) + token[:cut], token[cut:])
                    assert zoo.control_ids(tokenizer, ids) == wanted, (options, token, cut)


def test_control_token_split_over_three_messages():
    tokenizer = toys.byte_tokenizer(chat="{% for m in messages %}{{ m.content }}{% endfor %}")
    turns = (Message("user", "<|im_"), Message("assistant", "sta"))
    assert zoo.control_ids(tokenizer, ids_of(renderer(tokenizer), turns, "rt|>")) == []


def test_role_cannot_write_control_tokens():
    tokenizer = toys.byte_tokenizer(chat="{% for m in messages %}<|im_{{ m.role }}|>{{ m.content }}{% endfor %}")
    assert "role" in reason(renderer(tokenizer), (Message("start|>x<|im_end", "a"),), "b")


def test_template_that_looks_into_a_text_with_control_tokens_is_not_read():
    """What is inside cannot be told from text then; the other answers are scored."""
    chat = "{% for m in messages %}{{ m.content.split('</s>')[-1] }}{% endfor %}"
    render = renderer(toys.byte_tokenizer(chat=chat))
    found = render([example("a", "b</s>c"), example("a", "b")])
    assert isinstance(found[0], Unscored) and isinstance(found[1], Rendered)


# BOS, EOS


@pytest.mark.parametrize("layout", ["chat", "concat", "dialogue"])
@pytest.mark.parametrize("name", ["byte", "merged", "unigram", "wordlevel"])
def test_one_bos(name, layout):
    tokenizer = zoo.ALL[name]()
    for prompt in ("a", "<s>a", ""):
        assert ids_of(renderer(tokenizer, layout=layout), prompt, "b").count(tokenizer.bos_token_id) == 1


def test_doubled_bos_of_a_template_is_taken_off():
    tokenizer = toys.byte_tokenizer(chat="<s>{{ bos_token }}{{ messages[-1].content }}")
    assert ids_of(renderer(tokenizer), "a", "b") == [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("b")]


def trl_tokenizer():
    pieces = ["<bos>", "<pad>", "<eos>", "<sep>", "\n", "Q", "a", "b", "c", "d", ".", " ", ".\n", "<unk>"]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[(".", "\n")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("§", "isolated")
    backend.add_special_tokens(["<bos>", "<pad>", "<eos>", "<sep>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return zoo._fast(backend, None, **names)


def test_trl_reward_vectors():
    """trl 1.16.0's RewardTrainer: prompt "Q", answers "a" and "b", one BOS, EOS appended once."""
    render = renderer(trl_tokenizer(), eos="append")
    assert render.part.layout == "concat"
    assert ids_of(render, "Q", "a") == [0, 5, 6, 2]
    assert ids_of(render, "Q", "b") == [0, 5, 7, 2]
    assert ids_of(render, "Qa", "") == [0, 5, 6, 2]
    finished = render.finished("Qa<eos>")
    assert finished.sequence.ids == (0, 5, 6, 2)
    assert ids_of(render, "Q", "a.\n") == [0, 5, 6, 12, 2]


def test_eos_that_the_tokenizer_adds_is_not_doubled():
    tokenizer = zoo.unigram()
    ids = ids_of(renderer(tokenizer, layout="concat", eos="append"), "a", "b")
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("policy", ["as_is", "append", "require"])
def test_eos_policies(policy):
    tokenizer = toys.byte_tokenizer()
    render = renderer(tokenizer, layout="concat", eos=policy)
    (found,) = render([example("a", "b")])
    if policy == "require":
        assert isinstance(found, Unscored) and "append" in found.reason
        return
    ends = found.sequence.ids[-1] == tokenizer.eos_token_id
    assert ends == (policy == "append")
    assert ("no_eos" in found.flags) == (policy == "as_is")


def test_eos_spelt_by_the_answer_is_no_eos():
    tokenizer = toys.byte_tokenizer()
    assert ids_of(renderer(tokenizer, layout="concat", eos="append"), "a", "b</s>").count(tokenizer.eos_token_id) == 1
    assert "no_eos" in renderer(tokenizer, layout="concat")([example("a", "b</s>")])[0].flags


@pytest.mark.parametrize("eos", ["append", "require"])
def test_tokenizer_without_eos(eos):
    with pytest.raises(Refused, match="no EOS"):
        renderer(toys.byte_tokenizer(eos=False), layout="concat", eos=eos)
    assert ids_of(renderer(toys.byte_tokenizer(eos=False), layout="concat"), "a", "b")


@pytest.mark.parametrize("pad", ["</s>", None, "<pad>"])
def test_pad_token_does_not_matter(pad):
    tokenizer = toys.byte_tokenizer(pad=pad)
    ids = ids_of(renderer(tokenizer, layout="concat", eos="append"), "a", "b")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a", "b", "</s>"]


# Finished texts


def test_finished_text_reads_control_tokens_and_gets_one_bos():
    tokenizer = toys.byte_tokenizer()
    render = renderer(tokenizer)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert list(render.finished(chat).sequence.ids) == ids_of(render, "a", "b")
    assert list(render.finished(chat.removeprefix("<s>")).sequence.ids) == ids_of(render, "a", "b")
    assert tokenizer.convert_ids_to_tokens(render.finished("x</s>").sequence.ids) == ["<s>", "x", "</s>"]
    assert tokenizer.convert_ids_to_tokens(render.finished("x").sequence.ids) == ["<s>", "x"]


def test_finished_text_gets_nothing_but_bos():
    tokenizer = zoo.wordpiece()  # it would add [CLS] and [SEP], and has no BOS
    assert tokenizer.convert_ids_to_tokens(renderer(tokenizer).finished("blue").sequence.ids)[0] != "[CLS]"


def test_finished_text_that_is_too_long_is_not_told_to_be_cut():
    render = renderer(toys.byte_tokenizer(), max_length=4, over_length="cut_prompt")
    found = render.finished("abcdefgh")
    assert found.over_length and "raise it, or give a shorter text" in found.reason
    taken = renderer(toys.byte_tokenizer(), positions=4, max_length=9).finished("abcdefgh")
    assert "max_length=4, which is all that the model takes; give a shorter text" in taken.reason
    with_end = renderer(toys.byte_tokenizer(), max_length=4, over_length="cut_prompt", append="z")
    assert "give a shorter text" in with_end.finished("abc").reason


def test_finished_text_that_gives_no_tokens():
    tokenizer = toys.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert "empty" in renderer(tokenizer).finished("").reason
    assert "surrogate" in renderer(tokenizer).finished("\ud800").reason


# Length


def test_over_length_is_an_error_by_default():
    render = renderer(toys.byte_tokenizer(), layout="concat", max_length=8)
    (found,) = render([example("abcdefgh", "x")])
    assert isinstance(found, Unscored) and found.over_length and "max_length=8" in found.reason
    assert len(ids_of(render, "abcdef", "x")) == 8


def test_the_models_positions_limit_too():
    tokenizer = toys.byte_tokenizer()
    assert renderer(tokenizer, positions=5, max_length=8).max_length == 5
    assert renderer(tokenizer, positions=5).max_length == 5
    assert renderer(tokenizer).max_length is None


@settings(max_examples=60)
@given(
    turns=st.lists(st.text(alphabet="abcé ", max_size=12), min_size=1, max_size=5),
    answer=st.text(alphabet="xyz", max_size=6),
    limit=st.integers(1, 80),
    system=st.booleans(),
)
def test_cutting_takes_from_the_left_of_the_prompt_and_no_more_than_it_must(turns, answer, limit, system):
    tokenizer = toys.byte_tokenizer(chat=toys.CHAT.replace(" | trim", ""))
    prompt = tuple(Message(("user", "assistant")[i % 2], t) for i, t in enumerate(turns))
    if system:
        prompt = (Message("system", "SYS"), *prompt)
    (whole,) = renderer(tokenizer)([example(prompt, answer)])
    (found,) = renderer(tokenizer, max_length=limit, over_length="cut_prompt")([example(prompt, answer)])
    if len(whole.sequence.ids) <= limit:
        assert found == whole
        return
    total = sum(map(len, turns))
    by_cut = [renderer(tokenizer)([example(cut_left(prompt, n), answer)])[0] for n in range(total + 1)]
    fitting = [r for r in by_cut if len(r.sequence.ids) <= limit]
    if not fitting:
        assert isinstance(found, Unscored) and found.over_length
        return
    assert found.sequence.ids == fitting[0].sequence.ids
    assert found.truncated and "over_length_cut" in found.flags
    text = tokenizer.decode(found.sequence.ids)
    assert text.endswith(f"assistant\n{answer}<|im_end|>\n")
    assert text.startswith("<s><|im_start|>system\nSYS<|im_end|>") == system


def test_cut_keeps_system_messages_where_they_are():
    prompt = (Message("user", "abc"), Message("system", "S"), Message("assistant", "de"), Message("user", "fg"))
    assert cut_left(prompt, 0) == prompt
    assert cut_left(prompt, 5) == (Message("system", "S"), Message("user", "fg"))


def test_cut_that_the_template_refuses():
    chat = "{% for m in messages %}{{ m.content or raise_exception('empty turn') }}{% endfor %}"
    render = renderer(toys.byte_tokenizer(chat=chat), max_length=5, over_length="cut_prompt")
    assert "empty turn" in reason(render, "abcdef", "answer")


def test_answer_too_long_even_alone():
    render = renderer(toys.byte_tokenizer(), layout="concat", max_length=4, over_length="cut_prompt")
    (found,) = render([example("ab", "wxyz")])
    assert isinstance(found, Unscored) and found.over_length


# Odd inputs


def test_flags_of_empty_texts():
    render = renderer(toys.byte_tokenizer())
    flags = [r.flags for r in render([example("", ""), example("a", ""), example("", "b"), example("a", "b")])]
    assert flags == [("empty_prompt", "empty_answer"), ("empty_answer",), ("empty_prompt",), ()]
    assert render([Example((), "b")])[0].flags == ("empty_prompt",)


def test_nothing_to_read():
    tokenizer = toys.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert "nothing to read" in reason(renderer(tokenizer, layout="concat"), "", "")


@pytest.mark.parametrize(("prompt", "response"), [("\ud800", "b"), ("a", "b\udfff")])
def test_unpaired_surrogates(prompt, response):
    assert "surrogate" in reason(renderer(toys.byte_tokenizer()), prompt, response)
    assert "surrogate" in reason(renderer(toys.byte_tokenizer()), (Message("\ud800", "a"),), "b")


def test_200k_characters():
    tokenizer = toys.byte_tokenizer()
    assert len(ids_of(renderer(tokenizer), "é" * 100_000, "b" * 100_000)) > 300_000
    render = renderer(tokenizer, max_length=1000, over_length="cut_prompt")
    assert len(ids_of(render, "a" * 200_000, "b")) == 1000


BAD_TEMPLATES = {
    "raises": "{{ raise_exception('roles must alternate') }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "attr filter": "{{ (messages | attr('__class__')).x.y }}",
    "range bomb": "{% for i in range(999999999) %}x{% endfor %}",
    "mutation": "{{ messages.append(1) }}",
    "division": "{{ 1 / 0 }}",
    "index": "{{ messages[0].content.encode('latin-1').decode('utf-16') }}",
    "syntax": "{% for m in messages %}",
    "undefined": "{{ nothing.at.all }}",
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_templates_stay_in_the_sandbox(name):
    render = renderer(toys.byte_tokenizer(chat=BAD_TEMPLATES[name]))
    found = reason(render, "a", "b")
    assert "template" in found and "class '" not in found and "builtin" not in found


def test_one_refusal_does_not_take_the_others_along():
    chat = "{% for m in messages %}{{ m.content if m.content != 'bad' else raise_exception('no') }}{% endfor %}"
    found = renderer(toys.byte_tokenizer(chat=chat))([example("a", "b"), example("bad", "b"), example("c", "d")])
    assert [type(r) for r in found] == [Rendered, Unscored, Rendered]


def test_a_template_with_the_date_gives_the_same_ids_every_day():
    chat = "{%- if strftime_now is defined %}\n    {%- set day = strftime_now('%d %b %Y') %}\n{%- endif %}\n{{ day }}"
    assert renderer(toys.byte_tokenizer(chat=chat)).text(example("a", "b")) == "26 Jul 2024"
    direct = toys.byte_tokenizer(chat="{{ strftime_now('%A, %B %d, %Y') }}{{ messages[-1].content }}")
    assert renderer(direct).text(example("a", "b")) == "Friday, July 26, 2024b"


def test_layouts():
    tokenizer = toys.byte_tokenizer()
    assert renderer(tokenizer, layout="dialogue").text(example("a", "b")) == "\n\nHuman: a\n\nAssistant: b"
    assert renderer(tokenizer, layout="concat").text(example("a", "b")) == "ab"
    assert "dialogue" in reason(renderer(tokenizer, layout="concat"), (Message("user", "a"), Message("user", "b")), "c")
    with pytest.raises(Refused, match="dialogue"):
        renderer(tokenizer, layout="concat").text(Example((Message("user", "a"), Message("user", "b")), "c"))
    with pytest.raises(Refused, match="no template"):
        Renderer(tokenizer, RewardSpec(kind="bradley_terry"), None)


@pytest.mark.parametrize("layout", ["concat", "dialogue"])
def test_plain_layouts_refuse_roles_that_are_slips_and_write_others(layout):
    render = renderer(toys.byte_tokenizer(), layout=layout)
    for role, near in (("asistant", "assistant"), ("User", "user"), ("systm", "system")):
        assert f"did you mean '{near}'?" in reason(render, (Message(role, "a"),), "b")
    assert "did you mean 'user'?" in reason(render, (Message("USER", "a"),), "b")
    own = ("developer", "function", "ipython", "critic", "customer", "tool_call", "x")
    for role in ("system", "user", "assistant", "tool", *own):
        assert ids_of(render, (Message(role, "a"),), "b")


@pytest.mark.parametrize("options", [{}, {"layout": "dialogue", "template": "{{ messages[0].role }}"}])
def test_templates_of_their_own_decide_about_roles(options):
    assert ids_of(renderer(toys.byte_tokenizer(), **options), (Message("critic", "a"),), "b")


def test_chat_templates_refuse_slips_that_they_do_not_name():
    each = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    render = renderer(toys.byte_tokenizer(chat=each))
    for role in ("usr", "User", "asistant"):
        assert reason(render, (Message(role, "a"),), "b").startswith(f"the chat template has no role '{role}'; did you")
    assert ids_of(render, (Message("critic", "a"),), "b")
    named = renderer(toys.byte_tokenizer(chat="{% if messages[0].role == 'User' %}{% endif %}" + each))
    assert ids_of(named, (Message("User", "a"),), "b")
    assert "did you mean" in reason(named, (Message("usr", "a"),), "b")


@pytest.mark.parametrize(("pooling", "read"), [("last", (3,)), ("cls", (0,)), ("mean", Span(0, 4))])
def test_reads(pooling, read):
    (found,) = renderer(toys.byte_tokenizer(), pooling=pooling, layout="concat", eos="append")([example("a", "b")])
    assert found.sequence.reads == {pooling: read}


def test_render_part():
    tokenizer = toys.byte_tokenizer()
    assert render_part(tokenizer, Render()).template == toys.CHAT
    assert render_part(tokenizer, Render(template="{{ 1 }}")).template == "{{ 1 }}"
    assert render_part(tokenizer, Render(layout="concat")).template == PLAIN["concat"]
    bare = toys.byte_tokenizer(chat=None)
    assert render_part(bare, Render(), append_eos=True).eos == "append"
    assert render_part(bare, Render(eos="as_is"), append_eos=True).eos == "as_is"
    assert render_part(toys.byte_tokenizer(chat=None, eos=False), Render(), append_eos=True).eos == "as_is"
    assert render_part(tokenizer, Render(), append_eos=True).eos == "as_is"
    tokenizer.chat_template = {"default": "{{ 2 }}", "tool_use": "{{ 3 }}"}
    assert chat_template(tokenizer) == "{{ 2 }}"


def test_tokenizer_hash_tells_tokenizers_apart():
    found = {tokenizer_hash(make()) for make in zoo.ALL.values()}
    assert len(found) == len(zoo.ALL)
    assert tokenizer_hash(toys.byte_tokenizer()) == tokenizer_hash(toys.byte_tokenizer())
    assert tokenizer_hash(toys.byte_tokenizer()) != tokenizer_hash(toys.byte_tokenizer(pad="</s>"))
