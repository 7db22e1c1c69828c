"""Kinds of golden cases that no runner serves yet, each with the issue that brings it.

The table is empty when the last of these issues closes.
"""

from __future__ import annotations

_KINDS: dict[str, tuple[int, str]] = {
    "one_peace": (8, "classify_ vision_ metrics"),
    "mplug_owl": (
        6,
        """
        abstractor bloom_ chat_prompt collate frame_indices generate_ lm_forward_ lora_merge preprocess_
        published_keys stage1_steps tokenize_ trainable_parameters video_ vision_
        """,
    ),
    "metrics": (
        8,
        """
        anls audio_tagging bleu bootstrap caption_suite cider cider_d classification closed_vocabulary_accuracy
        coco_detection glue gqa grounding image_text_retrieval letter_extraction meteor mm_vet mmbench_circular
        mme mmmu owl_eval pope ptb_tokenizer q_bench rouge_l scienceqa seed_bench semantic_segmentation
        text_benchmarks video_qa video_text_retrieval vqa_accuracy vqa_normalize
        """,
    ),
}

LATER: dict[str, dict[str, int]] = {
    system: dict.fromkeys(kinds.split(), issue) for system, (issue, kinds) in _KINDS.items()
}
"""System -> beginning of the names of its cases -> issue."""
