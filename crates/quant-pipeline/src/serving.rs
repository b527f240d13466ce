//! How to load an output, for the programs that can.

use crate::plan::Plan;
use quant_checkpoint::formats::{Format as _, VllmAscend};
use quant_checkpoint::{Target, TargetVerdict, judge_plan};
use serde::Serialize;

/// A program and the line that makes it load a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServeCommand {
    /// The program.
    pub client: &'static str,
    /// A shell command, or a Python expression for transformers.
    pub command: String,
    /// Of 1, 2, 4 and 8 devices, and the number that it was made for, those with which it loads by tensor parallelism.
    pub tensor_parallel: Vec<usize>,
}

/// The lines that load what a plan writes from `folder`, for exactly the targets whose rules it passes; `custom_code` where
/// the config's `auto_map` names code. Cards, reports and the terminal all ask here.
pub(crate) fn commands(plan: &Plan, folder: &str, custom_code: bool) -> Vec<ServeCommand> {
    let format = plan.recipe.format();
    let shell = shell_word(folder);
    let trust = if custom_code { " --trust-remote-code" } else { "" };
    let command = |target| match target {
        Target::Vllm => ("vLLM", format!("vllm serve {shell}{trust}")),
        Target::VllmAscend => {
            // Versions that do not look for the description need to be told; the others accept it.
            let ascend = if format.id() == VllmAscend.id() { " --quantization ascend" } else { "" };
            ("vLLM-Ascend", format!("vllm serve {shell}{ascend}{trust}"))
        }
        Target::SglangNpu => {
            let slim = if format.id() == VllmAscend.id() { " --quantization modelslim" } else { "" };
            let server = "python -m sglang.launch_server --device npu --model-path";
            ("SGLang on NPU", format!("{server} {shell}{slim}{trust}"))
        }
        Target::Transformers => {
            let trust = if custom_code { ", trust_remote_code=True" } else { "" };
            let text = serde_json::Value::from(folder);
            ("transformers", format!("AutoModelForCausalLM.from_pretrained({text}{trust})"))
        }
    };
    let verdicts = judge_plan(&plan.spec, &plan.scheme, format);
    let passing = verdicts.into_iter().filter(TargetVerdict::passes);
    passing
        .map(|TargetVerdict { target, tensor_parallel, .. }| {
            let (client, mut command) = command(target);
            // What does not load on one device needs to be told on how many it does.
            if let Some(devices) = tensor_parallel.first().filter(|devices| **devices != 1) {
                match target {
                    Target::Vllm | Target::VllmAscend => {
                        command += &format!(" --tensor-parallel-size {devices}");
                    }
                    Target::SglangNpu => command += &format!(" --tp-size {devices}"),
                    Target::Transformers => {}
                }
            }
            ServeCommand { client, command, tensor_parallel }
        })
        .collect()
}

/// A path as one word of a POSIX shell.
fn shell_word(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !path.is_empty() && !path.starts_with('-') && path.chars().all(plain) {
        return path.to_owned();
    }
    let dashed = if path.starts_with('-') { "./" } else { "" };
    format!("'{dashed}{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word() {
        assert_eq!(shell_word("out/Qwen2.5-7B_w8a8"), "out/Qwen2.5-7B_w8a8");
        assert_eq!(shell_word("my model"), "'my model'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word("-x"), "'./-x'");
        assert_eq!(shell_word("$(rm)"), "'$(rm)'");
    }
}
