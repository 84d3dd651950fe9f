//! Seeds that must pass on every change: a fixed set, and those that failed once, by name.

use std::ops::RangeInclusive;

use pacsync_simulations::sim::{
    Detail, DiskKind, Faults, Outcome, Setup, home_put_back, members_give_no_checkpoints, run,
    the_left_out_come_back, years,
};

#[track_caller]
fn check(seed: u64, steps: usize, devices: usize) -> String {
    check_with(Faults::Classic, seed, steps, devices)
}

#[track_caller]
fn check_with(faults: Faults, seed: u64, steps: usize, devices: usize) -> String {
    check_on(DiskKind::Ext4, faults, seed, steps, devices)
}

#[track_caller]
fn check_on(disk: DiskKind, faults: Faults, seed: u64, steps: usize, devices: usize) -> String {
    let setup = Setup {
        seed,
        steps,
        devices,
        disk,
        faults,
    };
    let outcome = run(&setup, Detail::Events);
    if let Some(failure) = outcome.failure {
        panic!(
            "{setup:?}: {}: {:#?}\n{}",
            failure.invariant,
            failure.details,
            outcome.trace.join("\n")
        );
    }
    outcome.hash
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..4 {
        assert_eq!(check(seed, 15, 2), check(seed, 15, 2), "{seed}");
    }
}

#[test]
fn a_fixed_set_of_seeds() {
    for seed in 1..=9 {
        check(seed, 15, 2);
    }
}

/// The same of disks without exchange, of those without modes, symlinks and cases, and of all kinds
/// together.
#[test]
fn a_fixed_set_of_seeds_on_other_disks() {
    for disk in [DiskKind::Plain, DiskKind::Fat, DiskKind::Mixed] {
        for seed in 1..=4 {
            check_on(disk, Faults::All, seed, 20, 2 + usize::from(seed % 3 == 0));
        }
    }
}

/// Somebody saved by a rename between a look at a path and a rename over it.
#[test]
fn a_save_in_the_moment_of_a_switch_without_exchange() {
    check_on(DiskKind::Plain, Faults::All, 1011, 40, 3);
}

/// A file was to be renamed to a name at which somebody had just made one, with the number of the
/// one that had been there before.
#[test]
fn a_file_at_the_new_name_with_the_number_of_the_old_one() {
    check_on(DiskKind::Fat, Faults::All, 910_212, 40, 3);
}

/// A joiner took down what its sponsor claimed to have, which was a lie.
#[test]
fn a_join_at_a_liar() {
    check_on(DiskKind::Plain, Faults::All, 802_089, 40, 3);
}

/// Directories that cannot be shown: what lies in them is not waited for. What waits for something
/// that a disk refused comes as soon as that has gone.
#[test]
fn nothing_keeps_devices_from_being_in_step() {
    for seed in [900_002, 900_007, 900_097] {
        check_on(DiskKind::Mixed, Faults::All, seed, 40, 2);
    }
    check_on(DiskKind::Plain, Faults::All, 904_271, 40, 2);
    // A version that had found no room in the packs was to be shown.
    check_on(DiskKind::Fat, Faults::All, 904_252, 40, 2);
}

/// A directory was moved while a put in it was mended after a crash.
#[test]
fn a_directory_that_is_moved_during_a_start() {
    check_on(DiskKind::Fat, Faults::All, 904_218, 40, 3);
    check_on(DiskKind::Plain, Faults::All, 904_089, 40, 3);
}

/// A file was edited that had become one with another, at another place.
#[test]
fn an_edit_of_a_file_that_became_another_one() {
    check_on(DiskKind::Mixed, Faults::All, 903_162, 40, 3);
}

/// Somebody saved between the two renames of such a switch, over a version that was not the only
/// newest one.
#[test]
fn a_save_while_nothing_stands_at_the_path() {
    check_on(DiskKind::Mixed, Faults::All, 710_090, 40, 2);
    check_on(DiskKind::Fat, Faults::All, 800_033, 40, 2);
    check_on(DiskKind::Plain, Faults::All, 800_056, 40, 2);
}

/// A peer answered with bytes that are not what it was asked for: the rest of its answer was never
/// asked for again.
#[test]
fn chunks_that_a_liar_owes() {
    check_on(DiskKind::Fat, Faults::All, 801_223, 40, 2);
}

/// What a put had set aside could be put back as little as the new file could come: nobody deleted it.
#[test]
fn a_file_that_cannot_be_put_back() {
    check_on(DiskKind::Mixed, Faults::All, 801_229, 40, 2);
}

/// A process died before it could note what it had put at a path, and somebody replaced that before
/// the next one had looked.
#[test]
fn a_save_over_what_nobody_noted() {
    check_on(DiskKind::Fat, Faults::All, 610_256, 40, 2);
    check_on(DiskKind::Plain, Faults::All, 700_136, 40, 2);
    check_on(DiskKind::Plain, Faults::All, 800_223, 40, 3);
}

/// Two names that a disk takes for one; renames to such; directories that hold what keeps its old
/// name.
#[test]
fn names_that_a_disk_takes_for_one() {
    for (seed, devices) in [(1016, 2), (1131, 3), (1135, 2), (1230, 3), (1281, 3)] {
        check_on(DiskKind::Fat, Faults::All, seed, 40, devices);
    }
    check_on(DiskKind::Fat, Faults::Classic, 240_133, 40, 2);
    check_on(DiskKind::Mixed, Faults::All, 200_147, 40, 2);
    // What could not be renamed to such a name was in the way of a third.
    check_on(DiskKind::Mixed, Faults::All, 710_134, 40, 2);
}

/// Events from within a directory came when a file had its place, whose name differed in its case.
#[test]
fn a_file_in_place_of_a_directory_of_another_case() {
    check_on(DiskKind::Fat, Faults::All, 800_165, 40, 2);
}

/// A directory came between an exchange and the look at what it brought, and a save over that.
#[test]
fn a_save_over_a_put_that_is_taken_back() {
    check_on(DiskKind::Mixed, Faults::All, 200_042, 40, 2);
}

/// The directory that a content was on its way into went elsewhere, with its temporary file.
#[test]
fn a_transfer_whose_directory_went_elsewhere() {
    check_on(DiskKind::Mixed, Faults::All, 200_286, 40, 3);
    check_on(DiskKind::Mixed, Faults::All, 906_184, 40, 2);
}

/// A joiner wrote that a content is the newest which nobody had any more.
#[test]
fn a_first_join_over_what_nobody_has_any_more() {
    check_on(DiskKind::Ext4, Faults::All, 220_109, 60, 2);
    check_on(DiskKind::Fat, Faults::All, 1082, 40, 2);
    check_on(DiskKind::Mixed, Faults::All, 200_043, 40, 3);
    // Over the first half of a write that its user then deleted.
    check_on(DiskKind::Mixed, Faults::All, 802_190, 40, 2);
}

/// A directory had to be made where another stood that was to go into it.
#[test]
fn a_directory_in_the_place_of_what_goes_into_it() {
    check_on(DiskKind::Ext4, Faults::All, 420_314, 60, 2);
}

/// The temporary symlink of a put stayed in a directory that was moved.
#[test]
fn a_temporary_symlink_that_was_moved_away() {
    check_on(DiskKind::Plain, Faults::All, 210_287, 40, 2);
}

/// What an ack says was told on a connection that was already dead, and never again.
#[test]
fn acks_are_told_on_each_connection() {
    check(3, 25, 3);
}

/// Two nodes met while a path was settling; the same look was asked for without end.
#[test]
fn a_settling_path_that_a_peer_fills() {
    check(10, 25, 2);
}

/// Both renamed one file to one name, and it was deleted on both.
#[test]
fn the_same_rename_on_two_devices() {
    check(352, 30, 2);
}

/// A file became a directory here and was edited there.
#[test]
fn a_directory_in_place_of_an_edited_file() {
    check(23, 25, 2);
}

/// A file was moved away and a symlink put in its place at once.
#[test]
fn a_symlink_in_place_of_a_moved_file() {
    check(165, 30, 3);
}

/// A file was saved while the daemon was dead between exchange and record.
#[test]
fn a_save_after_a_crash_between_exchange_and_record() {
    check(473, 30, 2);
}

/// The removal of a file put aside was undone by a power loss, its record's was not.
#[test]
fn a_removal_that_power_loss_undoes() {
    check(101, 30, 2);
}

/// What was put aside was gone after a crash, while something else could not be read for a while.
#[test]
fn a_file_put_aside_is_gone_and_a_path_unreadable() {
    check(20171, 50, 2);
}

/// A version was moved away in the moment in which another node was to take its path.
#[test]
fn a_version_that_is_taken_away_while_another_comes() {
    check(30359, 60, 2);
}

/// The last file of a directory was deleted on both sides; the directory's removal waited for it.
#[test]
fn a_directory_whose_last_file_went_on_both_sides() {
    check(40495, 60, 2);
}

/// A file was saved over a symlink in the moment in which the symlink was removed.
#[test]
fn a_file_in_place_of_a_symlink_that_goes() {
    check(51052, 60, 3);
}

/// A file was replaced by a symlink in the moment in which another version of it came.
#[test]
fn a_symlink_in_place_of_a_file_that_changes() {
    check(51050, 60, 3);
}

/// A file was renamed elsewhere, where it had become one with another that was being written here.
#[test]
fn a_rename_of_what_is_being_written_as_another_node() {
    check(50494, 60, 3);
}

#[track_caller]
fn check_story(story: fn(u64, Detail) -> Outcome, seeds: RangeInclusive<u64>) {
    for seed in seeds {
        let outcome = story(seed, Detail::Events);
        if let Some(failure) = outcome.failure {
            panic!(
                "story {seed}: {}: {:#?}\n{}",
                failure.invariant,
                failure.details,
                outcome.trace.join("\n")
            );
        }
    }
}

/// Five years away: nothing that was written is lost, nothing that was deleted is back, and who
/// joins meanwhile starts from a checkpoint.
#[test]
fn a_device_is_away_for_years() {
    check_story(years, 2..=6);
}

/// A file was renamed into a directory that takes the place of another file, which was made while this device was away.
#[test]
fn a_file_goes_into_a_directory_whose_place_is_taken_after_years() {
    check_story(years, 1..=1);
}

/// What both lives of the device wrote is there, and nothing that went since the copy is back.
#[test]
fn a_home_is_put_back_from_an_older_copy() {
    check_story(home_put_back, 1..=6);
}

/// What was moved over another file after the copy was made: the two had become one, and the one that was missed
/// at its old place counted as deleted.
#[test]
fn a_file_moved_after_the_copy_of_a_home_that_is_put_back() {
    check_story(home_put_back, 12..=14);
}

/// A machine was copied and both were used: who lacked what the others had pruned by the acks of its
/// twin; of whom content was asked; what was stable of a forked log; a join by names that logs had
/// before; two copies in the same life that took each other's place.
#[test]
fn a_machine_is_copied_in_use() {
    for (seed, devices) in [(830_026, 2), (830_029, 2)] {
        check_with(Faults::All, seed, 40, devices);
    }
    for (seed, devices) in [(860_046, 3), (860_054, 2), (860_082, 3), (870_133, 2)] {
        check_with(Faults::All, seed, 50, devices);
    }
    check_on(DiskKind::Fat, Faults::All, 850_076, 50, 2);
    check_on(DiskKind::Fat, Faults::All, 850_092, 50, 3);
    check_on(DiskKind::Plain, Faults::All, 870_013, 50, 2);
}

/// A log forked within a segment, and the shorter chain was pruned by the acks of the twin: by
/// numbers the longer one had it, so nobody took the checkpoint. Whole ones are taken in tiny parts by
/// slow links.
#[test]
fn a_chain_of_a_fork_that_is_shorter_and_pruned() {
    check_with(Faults::All, 930_274, 50, 2);
    for disk in [DiskKind::Ext4, DiskKind::Fat] {
        check_on(disk, Faults::All, 1_001_018, 50, 2);
    }
}

/// Several files became one, of which one was on disk here: another was planned first and made it anew,
/// and the one that was there stayed, known to nobody.
#[test]
fn several_files_become_one_of_which_one_is_here() {
    check_with(Faults::All, 960_049, 50, 2);
    check_on(DiskKind::Plain, Faults::All, 960_049, 50, 2);
    check_with(Faults::All, 1_001_046, 50, 3);
}

/// A file was deleted that had just become one with another, which then showed it again.
#[test]
fn a_file_that_is_deleted_when_it_has_become_another_one() {
    check_on(DiskKind::Mixed, Faults::All, 904_088, 40, 2);
}

/// A file that a disk could not rename stood where a directory was wanted: what lies in that one cannot
/// show either.
#[test]
fn a_directory_whose_place_is_taken_by_what_keeps_its_old_name() {
    check_on(DiskKind::Fat, Faults::All, 1_001_141, 50, 2);
}

/// A directory was moved into another one, where one of its files cannot have its name, and a new one
/// made in its place.
#[test]
fn a_directory_in_place_of_one_that_holds_what_keeps_its_old_name() {
    check_on(DiskKind::Mixed, Faults::All, 1_100_126, 50, 2);
}

/// All slept in the moment in which somebody had saved.
#[test]
fn an_edit_before_a_long_sleep() {
    check_on(DiskKind::Fat, Faults::All, 1_100_186, 50, 2);
}

/// Somebody deleted all that was on a disk, and was never asked whether that was meant.
#[test]
fn all_that_is_on_a_disk_is_deleted() {
    check_on(DiskKind::Fat, Faults::All, 1_100_532, 50, 3);
}

/// A merge was, to the byte, what somebody had saved and overwritten before anybody knew of it.
#[test]
fn a_merge_that_is_what_was_overwritten() {
    check_with(Faults::All, 870_070, 50, 2);
}

/// A text became by an edit what another file had held, which its user overwrote: it is no zombie.
#[test]
fn two_texts_become_the_same() {
    check_with(
        Faults::All,
        1_400_211,
        50,
        2 + usize::from(1_400_211 % 3 == 0),
    );
}

/// What an apply had removed was edited, as a crash had come before the record of it.
#[test]
fn what_stands_where_something_was_removed_before_a_crash() {
    check_with(Faults::All, 840_048, 50, 3);
}

/// A directory that gave way to another one, of the same name, still held what was to be shown in it.
#[test]
fn a_directory_that_gives_way_is_emptied() {
    check_with(Faults::All, 930_164, 50, 2 + usize::from(930_164 % 3 == 0));
}

/// A transfer's file could be renamed neither to its place nor back.
#[test]
fn a_transfer_that_gets_neither_to_its_place_nor_back() {
    check_on(DiskKind::Fat, Faults::All, 830_058, 40, 3);
}

/// Once an admin is there who has all rows of it.
#[test]
fn what_a_new_device_started_without_comes_back() {
    check_story(the_left_out_come_back, 1..=6);
}

#[test]
fn who_joins_takes_no_checkpoint_from_a_member() {
    check_story(members_give_no_checkpoints, 1..=4);
}

/// A directory went while a big file was on its way into it.
#[test]
fn a_directory_that_goes_during_a_transfer_into_it() {
    check(60401, 60, 2);
}

/// The last file went while the root could not be listed, which passed for an empty one.
#[test]
fn a_root_that_cannot_be_listed_is_not_bare() {
    check_with(Faults::All, 6065, 60, 2);
}

/// The power went after a directory was made and before it was durable: its absence was told as a
/// deletion.
#[test]
fn a_directory_that_a_power_cut_takes_is_not_deleted() {
    check_with(Faults::All, 100_304, 60, 2);
}

/// The process died after a mode was set and before it was noted.
#[test]
fn a_mode_that_was_set_and_not_noted_is_no_change() {
    check_with(Faults::All, 100_541, 60, 2);
}

/// Who had just joined acknowledged all to a device that had not yet heard of the joining, and that
/// took no ack of strangers.
#[test]
fn an_ack_of_one_who_is_not_known_yet() {
    check_with(Faults::All, 100_459, 60, 2);
}
