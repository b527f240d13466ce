//! A job that ends at each operation on its files.

use super::common::long;
use super::{RECIPES, disk, files, first_blocks, small_job};
use ptq::checkpoint::Disk;
use ptq::pipeline::{QuantizeJob, Silent, quantize_on};
use quant_testkit::CutDisk;
use std::path::Path;
use tempfile::tempdir;

/// As a killed process and as a machine without power, and goes on. In the long form at every operation, and for methods that keep other
/// records as well.
#[test]
fn whatever_the_operation_at_which_a_job_ends() {
    let work = tempdir().unwrap();
    let model = first_blocks(work.path(), 2);
    let others = ["qronos", "quarot, gptq", "flatquant", "a rounded head"];
    for (name, modifiers) in RECIPES {
        let first = modifiers == RECIPES[1].1;
        if first || (long() && others.contains(&name)) {
            ends_anywhere(&model, name, modifiers, if long() { 1 } else { 4 });
        }
    }
}

fn ends_anywhere(model: &Path, name: &str, modifiers: &str, step: usize) {
    let work = tempdir().unwrap();
    let whole = work.path().join("whole");
    quantize_on(&small_job(model, modifiers, &whole), &disk(Disk), &mut Silent).unwrap();
    let expected = files(&whole);
    let (mut resumed, mut moments) = (0, 0);
    for cut in (0..).step_by(step) {
        moments += 1;
        let place = tempdir().unwrap();
        let cut_off = CutDisk::new(place.path(), cut);
        let job = small_job(model, modifiers, &cut_off.root().join("out"));
        let ended = quantize_on(&job, &disk(cut_off.clone()), &mut Silent);
        assert_eq!(ended.is_err(), cut_off.is_cut(), "{name}, {cut}: {:?}", ended.map(|o| o.seconds));
        let power = place.path().join("power");
        std::fs::create_dir(&power).unwrap();
        cut_off.after_power_cut(&power.join("disk"));
        for place in [place.path(), &power] {
            let endless = CutDisk::new(place, usize::MAX);
            let output = endless.root().join("out");
            let job = QuantizeJob { resume: true, ..small_job(model, modifiers, &output) };
            let outcome = quantize_on(&job, &disk(endless), &mut Silent)
                .unwrap_or_else(|e| panic!("{name}, {cut}: {e}"));
            resumed += usize::from(outcome.resumed.is_some());
            assert!(files(&output) == expected, "{name}, {cut}");
            let beside = std::fs::read_dir(output.parent().unwrap()).unwrap().count();
            assert_eq!(beside, 1, "{name}, {cut}: something is left beside the output");
        }
        if ended.is_ok() {
            println!(
                "| {name} | {moments} moments, each with and without power | {resumed} resumed, all equal |"
            );
            assert!(
                resumed > moments,
                "{name}: most moments leave work to go on with: {resumed} of {moments}, twice"
            );
            break;
        }
    }
}
