"""Names that users import keep their places: whatever moves inside, every name of this list resolves."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PATHS = {
    "plait": "Assistant Chat Embedder Index Sample load",
    "plait.types": "Sample",
    "plait.cli": "main",
    "plait.models.one_peace": """
        OnePeaceConfig DecoderConfig AdapterSizes
        OnePeacePreTrainedModel OnePeaceModel OnePeaceForPreTraining OnePeaceForClassification
        OnePeaceImageClassifier OnePeaceVideoClassifier DetectionBackbone SegmentationBackbone
        OnePeaceProcessor OnePeaceImageProcessor OnePeaceFeatureExtractor
    """,
    "plait.models.mplug2": """
        MPlug2Config VisionConfig
        MPlug2PreTrainedModel MPlug2Model MPlug2ForPreTraining MPlug2ForConditionalGeneration MPlug2ForRetrieval
        MPlug2ForGrounding MPlug2ForImageClassification MPlug2ForVideoClassification MPlug2ForSequenceClassification
        MPlug2Processor MPlug2ImageProcessor
    """,
    "plait.models.mplug_owl": """
        MPlugOwlConfig VisionConfig AbstractorConfig
        MPlugOwlForConditionalGeneration
        MPlugOwlProcessor MPlugOwlImageProcessor
    """,
    "plait.models.mplug_owl2": """
        MPlugOwl2Config VisionConfig AbstractorConfig
        MPlugOwl2PreTrainedModel MPlugOwl2Model MPlugOwl2ForConditionalGeneration
        MPlugOwl2Processor MPlugOwl2ImageProcessor
    """,
    "plait.models.convert": "convert",
    "plait.models.merge": "merge",
    "plait.media": "kind_of",
    "plait.media.image": "load_image",
    "plait.media.audio": "load_audio",
    "plait.media.video": "load_video",
    "plait.data.manifest": "read_manifest",
    "plait.data.folder": "scan",
    "plait.data.sources": "open_samples",
    "plait.metrics.answers": """
        exact_match anls edit_distance gqa_normalised gqa_scores judge_verdict judge_scores answer_after_key
    """,
    "plait.metrics.bootstrap": """
        Interval lcg64_indices numpy_indices bootstrap_mean bootstrap_ratio bootstrap_clustered_mean paired_bootstrap
        bootstrap
    """,
    "plait.metrics.boxes": "box_iou box_giou box_hits accuracy_at_iou is_inverted xywh_to_xyxy",
    "plait.metrics.captions": """
        CaptionScores DocumentFrequency caption_scores token_scores tokenized bleu rouge_l cider
    """,
    "plait.metrics.choices": """
        percent percent_by circular_hits mmbench_scores mmmu_scores scienceqa_scores seed_bench_scores lowest_loss
        q_bench_scores q_bench_quality mmlu_scores arc_scores
    """,
    "plait.metrics.classification": """
        predictions top_k_hits top_k_accuracy mean_per_class_accuracy average_views closed_vocabulary_accuracy
    """,
    "plait.metrics.detection": "coco_ap",
    "plait.metrics.glue": "accuracy f1 matthews pearson spearman mean_ranks",
    "plait.metrics.java": "missing spice_missing meteor spice stanford_tokens tokenized",
    "plait.metrics.ptb": "ptb_tokens_of ptb_tokens",
    "plait.metrics.replies": """
        letter mmmu_release_letter open_answer_hit open_candidates normal_form mme_label pope_label
    """,
    "plait.metrics.retrieval": """
        ranks hits_at_k recall_at_k class_means class_balanced_recall median_rank chance_at_k expected_chance
        bootstrap_interval
    """,
    "plait.metrics.segmentation": "SegmentationScores confusion scores_of segmentation_scores",
    "plait.metrics.suites": """
        mme_scores pope_scores judge_grade mm_vet_scores mmhal_rating mmhal_scores owl_eval_table
    """,
    "plait.metrics.tagging": """
        average_precision average_precisions mean_average_precision micro_average_precision label_ranking_precisions
        label_ranking_average_precision label_weighted_ranking_precision sigmoid
    """,
    "plait.metrics.two_way_retrieval": """
        owner_ranks vector_ranks rank_scores lower_median mean_recall image_text_scores video_text_scores
        several_text_scores
    """,
    "plait.metrics.vqa": "contractions without_punctuation plain_words evalai vqa_accuracy",
    "plait.generation": """
        Hypothesis RankedAnswers StepFunction beam_search length_penalty rank_answers score_sequences
    """,
    "plait.generation.answer_ranking": "RankedAnswers rank_answers",
    "plait.generation.beam_search": "Hypothesis StepFunction length_penalty beam_search score_sequences",
    "plait.generation.official_beams": "Search OfficialBeams named one_cache",
    "plait.generation.talking": "TalkingSkills summed_losses",
    "plait.objectives.captioning": "next_token_loss answer_loss supervise",
    "plait.objectives.classification": """
        smoothed_cross_entropy cross_entropy_sum multi_label_sum choice_hinge_sum box_loss paired_giou
    """,
    "plait.objectives.contrastive": "ContrastiveOutput contrastive_loss",
    "plait.objectives.denoising": "denoising_contrast denoising_l2 denoising_smooth_l1",
    "plait.objectives.distillation": "soft_label_loss mix ramped_alpha update_teacher",
    "plait.objectives.grounding": """
        boxes_to_tokens tokens_to_boxes corners generalized_iou coordinate_bias coordinate_token_loss
        box_regression_loss
    """,
    "plait.objectives.masked": "mask_tokens masked_lm_loss",
    "plait.objectives.matching": "QueueContrast queue_contrast enqueue hard_negatives matching_loss",
    "plait.objectives.scst": "scst_loss",
    "plait.routing": "Route PerModality partition",
}
"""Module -> what users import from it."""

FAMILIES = ("one_peace", "mplug2", "mplug_owl", "mplug_owl2")


@pytest.mark.parametrize("module", PATHS)
def test_names_stay_where_users_import_them(module: str) -> None:
    found = import_module(module)
    missing = [name for name in PATHS[module].split() if not callable(getattr(found, name, None))]
    assert not missing, f"{module} lost {', '.join(missing)}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_lists_its_names_and_no_others(family: str) -> None:
    package = import_module(f"plait.models.{family}")
    assert set(PATHS[f"plait.models.{family}"].split()) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        getattr(package, "nothing_of_this_name")  # noqa: B009


def test_families_are_imported_without_torch() -> None:
    wanted = ", ".join(f"plait.models.{family}" for family in FAMILIES)
    report = "print(*{'torch', 'transformers'} & set(sys.modules), end='')"
    run = [sys.executable, "-c", f"import sys; import {wanted}; {report}"]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == ""
