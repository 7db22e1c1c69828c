"""Both doors: which outputs of golden cases hold with the quirks of the official code only, and who judges ours.

(system, beginning of a case's name) -> outputs, the quirk, the test of what users get instead

Everything that is not listed must hold through the default door too (`plait parity --door default`).
"""

from __future__ import annotations

from plait.parity.runners import Quirk

LEAK = "padding leaks into shorter clips of a batch"
ALONE = "tests/models/one_peace/test_model.py::test_a_clip_does_not_depend_on_its_batch_mates"
BEAMS = "finished hypotheses grow on"
BEST = "tests/generation/test_beam_search.py::test_a_wide_beam_finds_the_best_of_all_sequences"
STUDENT = "the student is normalised over the sequence, not the vocabulary"
SOFT = "tests/objectives/test_distillation.py::test_one_hot_soft_labels_are_hard_labels"
RANK = "the first token of an answer counts twice"
RANKED = "tests/models/mplug2/test_model.py::test_ranking_agrees_with_the_loss_of_every_answer"

QUIRKS = {
    ("mplug2", "beam_search"): Quirk(("out.*",), BEAMS, BEST),
    ("mplug2", "videocaption_"): Quirk(("out.nbest.*",), BEAMS, BEST),
    ("mplug2", "decoder_lm"): Quirk(("out.loss_distill_*",), STUDENT, SOFT),
    ("mplug2", "decoder_prefix"): Quirk(("out.loss_distill_*",), STUDENT, SOFT),
    ("mplug2", "mlm_"): Quirk(("out.loss_distill_*",), STUDENT, SOFT),
    ("mplug2", "videoqa_"): Quirk(("out.rank.*",), RANK, RANKED),
    ("mplug2", "videoqa_momentum_distill"): Quirk(
        ("out.after_update.*", "out.momentum_logits", "out.loss", "out.grad.*"),
        "the teacher is inert and its fusion layers stay behind",
        "tests/models/mplug2/test_model.py::test_a_teacher_moves_slowly_and_teaches",
    ),
    ("mplug2", "checkpoint_key_renames"): Quirk(
        ("json.result",),
        "the loader loses the masked language head's bias",
        "tests/models/mplug2/test_loading.py::test_pretraining_names_become_finetuning_names",
    ),
    ("mplug2", "mplug1_grounding"): Quirk(
        ("out.loss", "out.grad.*"),
        "a box is weighted by the errors of others",
        "tests/objectives/test_grounding.py::test_only_officially_a_box_is_weighted_by_the_errors_of_others",
    ),
    ("mplug2", "preprocess_video_train"): Quirk(
        ("out.*",),
        "cubic resizing leaves the range of a byte and wraps",
        "tests/processing/test_video_transforms.py::test_only_the_official_resize_leaves_the_range_and_wraps",
    ),
    ("mplug2", "scst_loss"): Quirk(
        ("out.*",),
        "scores are divided by their length twice",
        "tests/objectives/test_scst.py::test_better_captions_become_likelier_and_worse_ones_rarer",
    ),
    ("mplug2", "text_preprocess"): Quirk(
        ("json.answer_targets", "json.caption_targets"),
        "answers end twice, and a prompt is glued to its caption",
        "tests/processing/test_wordpiece.py::test_answers_end_once_and_officially_twice",
    ),
    ("mplug_owl", "chat_prompt"): Quirk(
        ("json.chats",),
        "the demo keeps one image of several in a line",
        "tests/parity/test_doors.py::test_every_image_of_a_line_stays_in_the_prompt",
    ),
    ("mplug_owl", "preprocess_image"): Quirk(
        ("out.pixel_values_rgba",),
        "transparent pictures are resized before they lose their transparency",
        "tests/parity/test_doors.py::test_a_transparent_picture_is_the_picture_without_transparency",
    ),
    ("mplug_owl", "tokenize_training"): Quirk(
        ("json.8",),
        "a placeholder at the very start is tokenized as text",
        "tests/parity/test_doors.py::test_a_placeholder_at_the_very_start_is_an_image",
    ),
    ("mplug_owl", "vision_smaller_image"): Quirk(
        ("out.hidden_states.*", "out.layer0.*", "out.last_hidden_state", "out.pooler_output"),
        "a smaller image gets the first rows of the position table",
        "tests/parity/test_doors.py::test_a_smaller_image_gets_a_resized_position_table",
    ),
    ("mplug_owl2", "owl2_beam"): Quirk(
        ("out.score*",),
        "lengths of beams count their prompt",
        "tests/models/mplug_owl2/test_model.py::"
        "test_beams_count_what_they_generated_and_the_official_ones_their_prompt_too",
    ),
    ("one_peace", "classify_aqa"): Quirk(("out.*",), LEAK, ALONE),
    ("one_peace", "classify_fsd50k"): Quirk(("out.*",), LEAK, ALONE),
    ("one_peace", "classify_vggsound"): Quirk(("out.*",), LEAK, ALONE),
    ("one_peace", "embeddings_val"): Quirk(
        ("out.audio_embedding", "out.fused_*", "out.sim_a2?"), LEAK, ALONE
    ),
    ("one_peace", "forward_al"): Quirk(("out.*",), LEAK, ALONE),
    ("one_peace", "forward_audio"): Quirk(
        ("out.adapter.x", "out.embedding", "out.features", "out.hidden.*"), LEAK, ALONE
    ),
    ("one_peace", "masked_encoding"): Quirk(("out.al.*", "out.audio.features", "out.audio.x"), LEAK, ALONE),
    ("one_peace", "pretrain_al"): Quirk(
        ("out.atc_loss", "out.audio_full", "out.dcl_*", "out.decoder.*", "out.grad.*", "out.loss", "out.student*",
         "out.teacher.*"),
        LEAK, ALONE,
    ),
    ("one_peace", "pretrain_vl"): Quirk(
        ("out.dcl_text_loss", "out.dcl_vl_*", "out.decoder.text", "out.decoder.vl_*", "out.grad.*", "out.loss",
         "out.student.text", "out.student.vl_*"),
        "the decoder attends to padding",
        "tests/parity/test_doors.py::test_the_decoder_does_not_read_padding",
    ),
    ("one_peace", "optim"): Quirk(
        ("config.pretrain_weight_decay",),
        "a missing comma in a list lets two tables decay",
        "tests/parity/test_doors.py::test_tables_of_the_decoder_do_not_decay",
    ),
}  # fmt: skip
