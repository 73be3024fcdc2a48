"""Published layouts by name: for the tests, and for `benchmarks/families.py`."""

from functools import partial

import test_families as whole
import torch
from layout_base import (
    ANSWER,
    ASKED,
    Layout,
    drawn,
    labels,
    linear,
    marked,
    mlp,
    named,
    of,
    outputs,
    polar,
    scalar,
    steps,
)
from layout_models import (
    BGE_GEMMA,
    QWEN3_RERANKER,
    chat,
    dense,
    embedding,
    encoder,
    lm_logit,
    lm_steps,
    modern_bert,
    pair_rm,
    pooled,
    rlhflow_pair,
    steam_shp,
)
from test_families import CASES, Case, H, layered, wb
from test_families_steps import pqm, reason_eval
from test_step_rewards import appended, extra_0, shepherd, softmax, turns
from torch.nn.functional import gelu

SUMMARY = wb("v_head.summary", 1)
TWO = wb("score.0", H) | wb("score.2", 2)
TOKENS = wb("score", 2)
LM = "this is a language model"
SHOWN = {
    "A1": "Skywork-Reward, FsfairX, Tulu-3-RM: config.json without labels",
    "A1, id2label of one": "Skywork-Reward, FsfairX, Tulu-3-RM: with a label",
    "A1, Qwen2": "AceMath-RM: Qwen2, without labels",
    "A3, value_head": "OpenRLHF, value_head_prefix",
    "A3, normalised": "OpenRLHF, normalize_reward",
    "A4": "TRL value head",
    "A4, wrapped": "TRL value head, saved with its wrapper",
    "A4b": "LLaMA-Factory, value_head.safetensors",
    "A4c": "ColossalChat",
    "A4d": "LlamaForClassification",
    "A5": "GRM-sftreg",
    "UltraRM": "UltraRM-13b",
    "Eurus": "Eurus-RM-7b",
    "Starling": "Starling-RM-34B",
    "Athene": "Athene-RM",
    "OASST": "oasst-rm-2-pythia, last token",
    "OASST, mean": "oasst-rm-2-pythia, mean",
    "InternLM2": "internlm2-reward",
    "B": "Qwen2.5-Math-RM, WorldPM",
    "ArmoRM": "ArmoRM-Llama3-8B",
    "QRM, Llama": "QRM-Llama3-8B",
    "QRM, Gemma": "QRM-Gemma-2-27B",
    "URM": "URM-LLaMa-3.1-8B",
    "LDL": "LDL-Reward-Gemma-2-27B",
}
ROBERTA = wb("classifier.dense", H) | wb("classifier.out_proj", 1)
LAYOUTS: dict[str, Layout] = {
    **{SHOWN.get(name, name): of(case) for name, case in CASES.items()},
    "Skywork-Reward-Gemma-2-27B": of(
        Case(
            {"score.weight": (1, H)},
            whole.last("score"),
            named("Gemma2ForSequenceClassification", **labels(1)),
            architecture="gemma2",
        )
    ),
    "INF-ORM-Llama3.1-70B": of(
        Case(
            whole.MLP, layered("score.0", "score.2", torch.relu), named("INFORMForSequenceClassification", **labels(1))
        )
    ),
    "Qwen3ForRewardModel": of(
        Case(whole.MLP, layered("score.0", "score.2", torch.relu), named("Qwen3ForRewardModel"), architecture="qwen3")
    ),
    "ODIN": Layout(
        outputs({"score.weight": (2, H)}, 1, **named("LlamaForSequenceClassification", **labels(2))),
        {"spec": "odin"},
        "has 2 outputs",
    ),
    "regression of five attributes": Layout(
        outputs({"score.weight": (5, H)}, 4, **named("LlamaForSequenceClassification", **labels(5))),
        {"output": 4},
        "has 5 outputs",
    ),
    "LlamaForClassification of four": Layout(
        outputs(
            {"classification_head.weight": (4, H)}, 2, **named("LlamaForClassification", classification_out_size=4)
        ),
        {"output": 2},
        "has 4 outputs",
    ),
    "a linear v_head of unknown place": Layout(
        partial(scalar, Case(whole.V_HEAD, whole.last("v_head"), named("LlamaForSequenceClassification"))),
        {"pooling": "last"},
        "called v_head",
    ),
    "POLAR": Layout(polar, {"append": "[UNUSED_TOKEN_130]"}, "beside a reference answer"),
    "ReasonFlux-PRM-1.5B, converted": Layout(
        partial(
            scalar,
            Case(
                wb("reward_head", 1),
                lambda t, h, j: torch.sigmoid(t["reward_head.weight"] @ h[-1] + t["reward_head.bias"]),
                named("Qwen2ForCausalLM"),
                lambda tokenizer, said: "<s>" + "".join(c for _, c in said),
                architecture="qwen2",
                special={"reward_head.weight": drawn((1, H), torch.Generator().manual_seed(4))},
            ),
        ),
        {"spec": "reasonflux-prm-1.5b"},
        "called reward_head",
    ),
    # Steps
    "Qwen2.5-Math-PRM": Layout(
        steps(
            extra_0,
            TWO,
            softmax(0, 1),
            score=mlp,
            added=["<extra_0>"],
            architecture="qwen2",
            says=named("Qwen2ForProcessRewardModel"),
        )
    ),
    "Skywork-o1-Open-PRM": Layout(
        steps(
            appended("\n", "\n"),
            SUMMARY,
            lambda z: torch.sigmoid(z[:, 0]),
            score=linear("v_head.summary"),
            architecture="qwen2",
            says=named("Qwen2ForPrmModel", auto_map={"AutoModel": "modeling.Qwen2ForRewardModel"}),
        )
    ),
    "PQM": Layout(
        steps(
            pqm,
            SUMMARY,
            lambda z: z[:, 0],
            score=linear("v_head.summary"),
            added=["[PRM]"],
            prefix="pretrained_model.model.",
            says=named("LlamaForCausalLM"),
        )
    ),
    "ReasonEval-7B": Layout(
        steps(
            reason_eval,
            wb("score_head", 3),
            softmax(0, 1, 1),
            score=linear("score_head"),
            architecture="mistral",
            says=named("ReasonEval_7B", score_dimension=3, use_bias=True),
        )
    ),
    "ReasonEval-34B": Layout(
        steps(
            reason_eval,
            {"score_head.weight": (3, H)},
            softmax(0, 1, 1),
            score=linear("score_head"),
            says=named("ReasonEval_34B", score_dim=3, bias=False),
        )
    ),
    "TRL step rewards": Layout(
        steps(
            appended("\n"),
            TOKENS,
            softmax(0, 1),
            score=linear("score"),
            architecture="qwen2",
            says=named("Qwen2ForTokenClassification", **labels(2)),
        ),
        {"spec": "trl-prm"},
        "rates tokens",
    ),
    "PURE-PRM-7B": Layout(
        steps(
            appended("\n\n"),
            TOKENS,
            softmax(-1, 1),
            score=linear("score"),
            architecture="qwen2",
            says=named("Qwen2ForTokenClassification", **labels(2)),
        ),
        {"spec": "pure-prm"},
        "rates tokens",
    ),
    "MATH-Minos": Layout(
        steps(
            marked("Human: {prompt}\n\nAssistant:", "и", "Step {n}: {step} ", "\n"),
            {"score.weight": (1, H)},
            lambda z: z[:, 0],
            score=linear("score"),
            architecture="mistral",
            says=named("MistralForTokenClassification", **labels(1)),
        ),
        {"spec": "math-minos"},
        "rates tokens",
    ),
    "token classifier of three classes": Layout(
        steps(
            appended("\n"),
            wb("score", 3),
            softmax(0, 1, 1),
            score=linear("score"),
            architecture="qwen2",
            says=named("Qwen2ForTokenClassification", **labels(3)),
        ),
        {"kind": "process", "output": (0, 1, 1)},
        "one of 3 classes",
    ),
    "MLP of two classes without a mark of steps": Layout(
        steps(
            appended("\n"),
            TWO,
            softmax(0, 1),
            score=mlp,
            architecture="qwen2",
            says=named("Qwen2ForProcessRewardModel"),
        ),
        {"step_token": "\n", "layout": "concat"},
        "no <extra_0>",
    ),
    "value head beside a mark of steps": Layout(
        steps(
            extra_0,
            SUMMARY,
            lambda z: torch.sigmoid(z[:, 0]),
            score=linear("v_head.summary"),
            added=["<extra_0>"],
            says=named("LlamaForCausalLM"),
        ),
        {"kind": "process", "layout": "chat", "step_token": "<extra_0>", "outputs": 1},
        "mark of steps",
    ),
    "Math-Shepherd": Layout(
        lm_steps(shepherd, "+-", softmax(1, 0), "mistral"),
        {"spec": "math-shepherd"},
        LM,
    ),
    "RLHFlow PRM": Layout(lm_steps(turns, "+-", softmax(1, 0)), {"spec": "rlhflow-prm"}, LM),
    "VersaPRM": Layout(lm_steps(marked("{prompt}\n\n", " \n\n\n\n"), "-+", softmax(0, 1)), {"spec": "versaprm"}, LM),
    # Logits of language models, and two answers
    "Llama-3.1-Nemotron-70B-Reward": Layout(
        lm_logit(lambda t: chat(t, ("user", ASKED), ("assistant", ANSWER)), [0], lambda z: z[0]),
        {"spec": "nemotron-reward"},
        LM,
    ),
    "Qwen3-Reranker": Layout(
        lm_logit(
            lambda t: QWEN3_RERANKER, ["yes", "no"], lambda z: z.softmax(-1)[0], ("yes", "no"), architecture="qwen2"
        ),
        {"spec": "qwen3-reranker"},
        LM,
    ),
    "bge-reranker-v2-gemma": Layout(
        lm_logit(lambda t: BGE_GEMMA, ["Yes"], lambda z: z[0], ("Yes",), architecture="gemma"),
        {"spec": "bge-reranker-gemma"},
        LM,
    ),
    "RLHFlow pair-preference-model": Layout(rlhflow_pair, {"spec": "rlhflow-pairwise"}, LM),
    "PairRM-hf": Layout(pair_rm),
    # Encoders
    "reward-model-deberta-v3": Layout(
        encoder(
            "deberta-v2",
            "deberta.",
            wb("pooler.dense", H) | wb("classifier", 1),
            dense("pooler.dense", "classifier", gelu),
            named("DebertaV2ForSequenceClassification", **labels(1)),
            type_vocab_size=0,
        )
    ),
    "electra-large-discriminator reward model": Layout(
        encoder(
            "electra",
            "electra.",
            ROBERTA,
            dense("classifier.dense", "classifier.out_proj", gelu),
            named("ElectraForSequenceClassification", **labels(1)),
            type_vocab_size=2,
            embedding_size=H,
        )
    ),
    "bge-reranker": Layout(
        encoder(
            "xlm-roberta",
            "roberta.",
            ROBERTA,
            dense("classifier.dense", "classifier.out_proj", torch.tanh),
            named("XLMRobertaForSequenceClassification", **labels(1)),
            type_vocab_size=1,
            pad_token_id=1,
            max_position_embeddings=514,
        )
    ),
    "ms-marco cross-encoder": Layout(
        encoder(
            "bert",
            "bert.",
            wb("classifier", 1),
            pooled,
            named("BertForSequenceClassification", **labels(1)),
            keep_pooler=True,
            type_vocab_size=2,
        )
    ),
    "gte-reranker-modernbert": Layout(modern_bert),
    "encoder of three classes": Layout(
        encoder(
            "xlm-roberta",
            "roberta.",
            wb("classifier.dense", H) | wb("classifier.out_proj", 3),
            dense("classifier.dense", "classifier.out_proj", torch.tanh),
            named("XLMRobertaForSequenceClassification", **labels(3)),
            column=2,
            type_vocab_size=1,
            pad_token_id=1,
            max_position_embeddings=514,
        ),
        {"output": 2},
        "has 3 outputs",
    ),
    # No rewards
    "Qwen3-Embedding": Layout(
        embedding("qwen3", "", lambda h: h[-1], named("Qwen3ForCausalLM"), "lasttoken", "<|endoftext|>"),
        {"spec": "qwen3-embedding"},
        "kind='embedding'",
    ),
    "sentence-transformers, mean": Layout(
        embedding("bert", "", lambda h: h.mean(0), named("BertModel"), "mean_tokens"),
        {"kind": "embedding", "pooling": "mean", "normalize": True},
        "kind='embedding'",
    ),
    "SteamSHP": Layout(steam_shp, says="encoder-decoder", refused=True),
}
