"""What all tests share: one small audit and its trained models in a session, however many processes it has."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

settings.register_profile("whatever else runs", deadline=None)
settings.load_profile("whatever else runs")

# What takes seconds to import is imported where it is needed: the process that gives out tests needs none of it.
if TYPE_CHECKING:
    import torch

    from tests.small_world import Invoke, Run, World

# What `make quick` leaves out: modules that print PDFs, import transformers or open_clip, or try the benchmarks, and
# tests of about a second and more, with all their cases.
SLOW_PLACES = (
    "tests/models/test_containers.py",
    "tests/models/test_converters.py",
    "tests/models/test_modules.py",
    "tests/models/test_outputs.py",
    "tests/models/test_preprocessing.py",
    "tests/models/test_processors.py",
    "tests/models/test_sent.py",
    "tests/models/test_zero_shot.py",
    "tests/report/test_pdf.py",
    "tests/report/test_render.py",
    "tests/benchmarks/",
    "tests/evidence/test_one_path.py",
    "tests/pipeline/test_held.py",
    "tests/pipeline/test_share_controls.py",
    "tests/release/test_sbom.py",
    "tests/release/test_wheel.py",
    "tests/repair/test_heads.py",
    "tests/repair/test_last_layer.py",
    "tests/repair/test_retraining.py",
    "tests/test_extras.py",
    "tests/test_process_state.py",
)
# Of the architectures that a test goes through, these are tried by `make quick`.
QUICK_FAMILIES = (
    "class token",
    "average pool, registers",
    "attention pool",
    "LayerScale",
    "beit",
    "dinov3",
    "swin v2",
    "resnet, bottleneck",
    "convnext",
)
SLOW = {
    "test_a_block_that_memory_does_not_suffice_for_is_not_cut_and_the_line_names_a_smaller_one",
    "test_a_card_that_says_nothing_of_images_sees_those_of_the_run",
    "test_a_changed_recipe_trains_again",
    "test_a_closed_pipe_is_none_of_them",
    "test_a_comparison_uses_no_forbidden_word",
    "test_a_corruption_takes_its_own_label_and_no_other",
    "test_a_file_is_no_folder_for_runs_or_for_the_cache",
    "test_a_folder_says_how_its_outputs_are_read",
    "test_a_gap_among_one_label_is_not_localised_as_a_standardised_gap_of_the_other_sign",
    "test_a_head_that_beats_all_twenty_random_ones_has_the_smallest_p_there_is",
    "test_a_hugging_face_folder_is_described_by_its_configuration",
    "test_a_killed_worker_costs_its_task_and_nothing_else",
    "test_a_lightning_prefix_is_taken_off_and_the_averaged_weights_are_asked_for",
    "test_a_lock_that_its_holder_removed_meanwhile_holds_nothing",
    "test_a_machine_whose_disk_is_full_marks_no_task_and_another_does_them",
    "test_a_model_that_is_lacking_is_trained_again_and_no_other",
    "test_a_model_trains_in_parts_of_a_batch_as_it_does_in_whole_ones",
    "test_a_model_trains_to_the_same_bits",
    "test_a_name_tells_the_number_of_heads_where_no_argument_was_changed",
    "test_a_number_that_was_changed_in_the_block_is_named",
    "test_a_path_is_every_hybrid_run_whole_and_ends_at_the_audited_model_to_the_bit",
    "test_a_processor_that_does_not_say_how_pixels_are_normalised",
    "test_a_record_without_rates_has_nothing_to_pick",
    "test_a_signal_that_comes_when_all_is_done_changes_no_exit_code",
    "test_a_single_logit_is_a_pair_of_classes_read_by_a_sigmoid",
    "test_a_state_dict_of_torchvision_is_read",
    "test_a_stranger_fails_by_its_heads_and_by_the_barrier",
    "test_a_sweep_stays_within_its_limit",
    "test_a_sweep_that_runs_out_of_memory_goes_on_in_halves",
    "test_a_task_that_kills_every_worker_is_named_and_the_others_are_done",
    "test_a_transplanted_head_is_a_model_with_that_heads_weights",
    "test_accelerators_for_a_run_on_the_processor_are_refused_in_a_line",
    "test_an_adapted_transformer_is_fed_and_read_as_is_said",
    "test_an_audit_from_the_bank_is_the_audit_that_patches",
    "test_an_internal_error_leaves_its_traceback_in_the_log",
    "test_an_interrupted_run_leaves_no_process",
    "test_another_architecture_size_or_recipe_is_another_base",
    "test_any_number_of_workers_gives_the_same_to_the_byte",
    "test_batch_boundaries_do_not_matter",
    "test_blocks_are_planned_in_memory_of_a_few_kilobytes_each",
    "test_blocks_find_what_one_sweep_finds",
    "test_both_models_of_each_test_have_learnt_the_toy",
    "test_broken_pipe_is_no_internal_error",
    "test_check_counts_the_built_in_data",
    "test_closed_output_is_no_internal_error",
    "test_commands_of_the_documents_run",
    "test_conditions_of_one_task_share_norm_and_classifier",
    "test_conditions_of_two_tasks_train_attention_only",
    "test_controls_go_on_after_workers_are_killed_and_nothing_is_measured_twice",
    "test_controls_in_blocks_find_what_one_process_finds_to_the_byte",
    "test_damaged_archives_are_refused_or_unpacked",
    "test_draws_do_not_depend_on_how_many_are_made_at_once",
    "test_each_channel_has_its_twins",
    "test_each_model_is_trained_as_if_alone",
    "test_each_set_is_read_with_its_own_card",
    "test_engine_gives_what_hooks_give_between_two_models",
    "test_every_audit_has_an_outcome_with_reasons",
    "test_every_family_comes_back_from_its_own_weights",
    "test_every_identity_holds_on_every_kind_of_model",
    "test_every_metric_weighs_images_as_the_comparison_of_groups_does",
    "test_every_number_of_a_table_is_in_the_row_of_the_record_that_it_names",
    "test_every_precision_learns_the_toy_on_every_device",
    "test_examples_run",
    "test_exchanged_donors_turn_the_effect_and_random_groups_are_quiet",
    "test_few_images_are_trained_on_where_they_are_enough",
    "test_few_seeds_have_scipys_exact_p",
    "test_harmless_differences_of_a_table_change_nothing",
    "test_heads_are_judged_the_same_to_the_bit",
    "test_heads_that_write_as_much_are_drawn_more_often",
    "test_help_is_quick_and_imports_nothing_heavy",
    "test_images_of_any_shape_go_through_the_folders_own_processor",
    "test_images_of_one_person_are_one_draw",
    "test_init_writes_a_card_that_check_accepts",
    "test_intervals_hold_the_truth",
    "test_intervals_hold_the_truth_about_as_often_as_they_say",
    "test_intervals_hold_the_truth_and_pairing_makes_them_narrow",
    "test_intervals_hold_the_truth_once_they_have_the_noise_of_the_means",
    "test_kills_cost_no_task_while_others_are_done",
    "test_loss_that_may_be_chance_is_not",
    "test_many_tasks_are_planned_and_merged_in_bounded_memory_and_time",
    "test_memory_in_use_grows_by_what_is_held_and_not_by_what_was_freed",
    "test_metadata_with_any_part_replaced_are_read_or_refused",
    "test_models_are_asked_once_and_in_vain_never",
    "test_models_are_listed_by_name",
    "test_models_as_they_are_pass_the_check",
    "test_models_of_each_device_and_precision_are_kept_apart",
    "test_no_call_runs_what_a_file_says",
    "test_no_more_work_at_once_than_there_is_memory_for",
    "test_no_number_is_picked_on_paper",
    "test_no_sentence_of_a_finding_claims_more_than_was_measured",
    "test_norms_that_learn_get_no_last_batch_of_one",
    "test_nothing_is_fetched_and_nothing_runs",
    "test_one_model_of_a_kind_and_its_figures",
    "test_one_stranger_among_the_donors_is_enough",
    "test_only_what_may_pass_is_tried_again_and_the_rest_goes_on",
    "test_open_clips_file_of_other_shapes_asks_for_its_name",
    "test_open_clips_file_without_its_configuration_is_known_by_its_shapes",
    "test_other_formats_say_the_same",
    "test_other_transformers_are_described_so_that_their_weights_fit",
    "test_page_is_well_formed_with_unique_ids_and_live_links",
    "test_pixels_are_rescaled_as_the_folder_says",
    "test_policy_admits_exactly_the_style_sheet",
    "test_policy_is_crossed_by_the_gap_or_by_the_ratio",
    "test_pretrained_weights_are_opened_where_they_are_and_never_fetched",
    "test_processes_end_with_them",
    "test_processes_of_several_devices_see_their_own_and_do_the_same",
    "test_rates_are_fairlearns_and_those_of_plain_masks",
    "test_relabelling_the_groups_turns_the_sign",
    "test_render_by_path_and_by_name",
    "test_report_uses_no_forbidden_word",
    "test_rows_are_sorted_sweep_by_sweep_however_few_are_held",
    "test_second_run_in_one_folder_is_refused",
    "test_settings_that_the_processor_does_not_take_are_refused_in_a_line",
    "test_structure_serves_assistive_technology",
    "test_ten_times_the_images_take_hardly_more_memory",
    "test_text_in_an_image_that_unfolds_to_gigabytes_is_refused",
    "test_the_block_of_a_common_model_stays_small",
    "test_the_engine_gives_what_hooks_give_between_two_models",
    "test_the_gap_of_the_two_that_are_aimed_at_is_halved",
    "test_the_model_card_is_valid_cyclonedx",
    "test_the_page_shows_decisions_as_text",
    "test_the_printed_page_runs_nothing",
    "test_the_printer_opens_neither_the_network_nor_the_disk",
    "test_the_record_is_the_same_with_and_without",
    "test_the_same_face_has_the_same_pixels_in_another_process",
    "test_the_search_for_near_copies_is_bounded",
    "test_the_second_call_loads_the_same_models",
    "test_the_slope_of_a_rate_is_that_of_the_decision",
    "test_the_table_of_shapes_is_that_of_the_models",
    "test_timms_models_are_known_by_their_shapes",
    "test_two_seeds_from_one_base_pass",
    "test_unknown_group_is_shown_and_never_compared",
    "test_unsupported_models_are_refused_by_name_with_the_list",
    "test_warnings_that_change_what_the_outcome_means_are_shown_with_it",
    "test_weights_from_before_norms_counted_batches_are_read",
    "test_weights_that_cannot_be_written_are_named_and_half_of_them_are_not_there",
    "test_what_came_of_each_finding",
    "test_what_cannot_be_shown_is_unfinished",
    "test_what_controls_measure_can_be_sent_to_other_processes",
    "test_what_does_not_fit_is_done_in_halves",
    "test_what_fails_once_is_tried_again_and_nobody_hears_of_it",
    "test_what_is_a_parts_own_is_known",
    "test_what_is_random_in_training_is_the_same_whoever_trains",
    "test_where_memory_does_not_suffice_for_controls_the_line_names_a_smaller_block",
    "test_where_no_pair_knows_the_task_there_is_no_barrier_to_measure",
    "test_where_the_disk_is_full_it_is_named_and_no_task_is_done_in_vain",
    "test_with_less_precision_the_engine_gives_nearly_the_same",
    "test_who_waits_gives_up_once_nobody_works_and_not_before",
    "test_without_a_group_nothing_is_taken",
    "test_without_the_inside_no_head_can_be_picked",
    "test_work_goes_on_with_fewer_images_at_once_and_finds_the_same",
    "test_work_that_fits_for_no_image_ends_in_a_line",
    "test_workers_end_with_their_coordinator",
}


@pytest.fixture(params=("cpu", "cuda", "mps"))
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device, one after the other; what cannot be run here is reported so."""
    return _opened(request.param)


@pytest.fixture(params=("cuda", "mps"))
def accelerator(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device but the processor; what cannot be run here is reported so."""
    return _opened(request.param)


def _opened(name: str) -> torch.device:
    from audit.models.device import devices_here, open_device

    if name not in devices_here():
        pytest.skip(f"not run: no {name} device")
    return open_device(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no module of which nothing is asked for: what these need takes as long as many tests."""
    place = collection_path.relative_to(config.rootpath).as_posix()
    quick = "not slow" in config.getoption("markexpr")
    return True if quick and place.startswith((*SLOW_PLACES, "tests/end_to_end/")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones."""
    for item in items:
        if item.nodeid.startswith(SLOW_PLACES) or item.name.split("[")[0] in SLOW or not _in_quick_family(item):
            item.add_marker(pytest.mark.slow)


def _in_quick_family(item: pytest.Item) -> bool:
    family = (
        item.callspec.params.get("family") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    )
    return not isinstance(family, str) or family in QUICK_FAMILIES


def pytest_collection_finish() -> None:
    """Set aside what the imports left, which no collection of garbage need look at again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter end as it does elsewhere."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> World:
    """Return the folder that all processes of this session share."""
    from tests.small_world import World

    own = tmp_path_factory.getbasetemp()
    return World(own.parent if hasattr(request.config, "workerinput") else own)


@pytest.fixture
def no_pdf() -> Iterator[None]:
    """Leave the PDF out of what is printed."""
    from tests.small_world import without_pdf

    with without_pdf():
        yield


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Return a call of the command line in this process."""
    from tests.small_world import invoke

    return invoke


@pytest.fixture(scope="session")
def small_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the small audit once."""
    from tests.small_world import write_card

    def prepare(folder: Path) -> Path:
        return write_card(folder / "card.yaml", audit={"ledger": {"depth": 2}})

    return world.audited("small", prepare, tmp_path_factory.mktemp("small"))
