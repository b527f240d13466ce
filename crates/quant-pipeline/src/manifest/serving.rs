//! How to load an output, for the programs that can.

use crate::plan::Plan;
use quant_graph::LinearScheme;
use serde::Serialize;

/// A program and the line that makes it load a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServeCommand {
    /// The program.
    pub client: &'static str,
    /// A shell command, or a Python expression for transformers.
    pub command: String,
}

/// Programs with a line of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Vllm,
    VllmAscend,
    Transformers,
}

/// The programs that load what a plan writes. The one place that knows: cards, reports and the terminal ask here.
fn clients(plan: &Plan) -> Vec<Client> {
    let scheme = &plan.scheme;
    match plan.recipe.format().id() {
        "compressed-tensors" => {
            // Its plugin for these folders has INT8 with activations per token; the static kind leaves an offset unset.
            let dynamic = |l: &LinearScheme| l.is_float() || l.input.is_some_and(|i| i.dynamic);
            let ascend = scheme.linears().all(|(_, _, l)| dynamic(l));
            let mut clients = vec![Client::Vllm];
            clients.extend(ascend.then_some(Client::VllmAscend));
            clients.push(Client::Transformers);
            clients
        }
        // The blocks of the cache kernel are 32 wide.
        "vllm-ascend" if scheme.kv.is_some() && !plan.spec.head_dim.is_multiple_of(32) => Vec::new(),
        "vllm-ascend" => vec![Client::VllmAscend],
        // A float checkpoint to everyone.
        "dequantized" => vec![Client::Vllm, Client::Transformers],
        _ => Vec::new(),
    }
}

/// The lines that load what a plan writes from `folder`; `custom_code` where the config's `auto_map` names code.
pub(crate) fn commands(plan: &Plan, folder: &str, custom_code: bool) -> Vec<ServeCommand> {
    let shell = shell_word(folder);
    let trust = if custom_code { " --trust-remote-code" } else { "" };
    let command = |client| match client {
        Client::Vllm => ServeCommand { client: "vLLM", command: format!("vllm serve {shell}{trust}") },
        Client::VllmAscend => {
            // Versions that do not look for the description need to be told; the others accept it.
            let ascend = if plan.recipe.format().id() == "vllm-ascend" { " --quantization ascend" } else { "" };
            ServeCommand { client: "vLLM-Ascend", command: format!("vllm serve {shell}{ascend}{trust}") }
        }
        Client::Transformers => {
            let trust = if custom_code { ", trust_remote_code=True" } else { "" };
            let text = serde_json::Value::from(folder);
            let command = format!("AutoModelForCausalLM.from_pretrained({text}{trust})");
            ServeCommand { client: "transformers", command }
        }
    };
    clients(plan).into_iter().map(command).collect()
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
