//! `--backend`: what executes the codes of a folder.

use super::{Failure, say};
use ascend_kernels::{Model, OpenOptions, Processor as Npu, ProcessorOptions, doctor};
use quant_core::FloatType;
use quant_core::operators::Processor;
use quant_kernels::Cpu;
use quant_model::Execution;
use quant_pipeline::{Registry, folder_spec_with};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Execute codes in the arithmetic of an NPU: on this machine's processor (cpu), or on NPU 0 or N through CANN (cann, cann:N)
    #[arg(long, value_name = "cpu|cann[:N]", value_parser = backend)]
    backend: Option<Backend>,
    /// Folder to look for CANN's libraries in, and nowhere else (default: where the system finds libraries)
    #[arg(long, value_name = "DIR", requires = "backend")]
    cann_library: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Cpu,
    Cann(i32),
}

fn backend(text: &str) -> Result<Backend, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Backend::Cpu),
        None if text == "cann" => Ok(Backend::Cann(0)),
        Some(("cann", device)) => match device.parse() {
            Ok(device @ 0..=1023) => Ok(Backend::Cann(device)),
            _ => Err("expected the number of an NPU behind cann:, from 0 on".into()),
        },
        _ => Err("expected cpu, cann or cann:N".into()),
    }
}

impl Args {
    pub(super) fn is_given(&self) -> bool {
        self.backend.is_some()
    }

    /// How a folder is executed: as it is asked for, or else with its codes where a backend is there to execute them.
    pub(super) fn execution(&self, asked: Option<Execution>) -> Option<Execution> {
        asked.or(self.is_given().then_some(Execution::Integer))
    }

    /// Opens the processor that is asked for, for the model of a folder.
    pub(super) fn open(
        &self,
        asked: Option<Execution>,
        model: &Path,
        registry: &Registry,
    ) -> Result<Opened, Failure> {
        if self.is_given() && asked == Some(Execution::Simulated) {
            return Err(Failure::usage("--backend says where codes are executed: leave --execute sim out"));
        }
        let float = match self.backend {
            Some(Backend::Cann(_)) => folder_spec_with(model, registry)?.dtype.served(),
            Some(Backend::Cpu) | None => FloatType::default(),
        };
        self.processor(float)
    }

    /// Opens the processor that is asked for, for models of a type.
    pub(super) fn processor(&self, float: FloatType) -> Result<Opened, Failure> {
        match self.backend {
            Some(Backend::Cann(device)) => self.cann(device, float).map(Opened::Npu),
            _ if self.cann_library.is_some() => {
                Err(Failure::usage("--cann-library goes with --backend cann"))
            }
            Some(Backend::Cpu) => Ok(Opened::Cpu),
            None => Ok(Opened::None),
        }
    }

    fn cann(&self, device: i32, float: FloatType) -> Result<Arc<Npu>, Failure> {
        let library = self.cann_library.iter().fold(OpenOptions::new(), |options, dir| options.folder(dir));
        let model = match float {
            FloatType::F16 => Model::F16,
            FloatType::F32 | FloatType::Bf16 => Model::Bf16,
        };
        let options = ProcessorOptions { library, device, model, ..ProcessorOptions::default() };
        match Npu::open(&options) {
            Ok(processor) => Ok(Arc::new(processor)),
            Err(error) if error.is_unavailable() => {
                let found = doctor(&options.library);
                Err(Failure::unsupported(format!("{error}\n{}", found.to_string().trim_end())))
            }
            Err(error) if error.is_out_of_memory() => Err(Failure::resources(error.to_string())),
            Err(error) => Err(Failure::other(error.to_string())),
        }
    }
}

/// What a command runs codes on.
#[derive(Clone, Debug)]
pub(super) enum Opened {
    /// As without the flag.
    None,
    Cpu,
    Npu(Arc<Npu>),
}

impl Opened {
    pub(super) fn get(&self) -> Option<Arc<dyn Processor>> {
        match self {
            Self::None => None,
            Self::Cpu => Some(Arc::new(Cpu::default())),
            Self::Npu(npu) => Some(Arc::clone(npu) as Arc<dyn Processor>),
        }
    }

    /// Gives the NPU back, and says so if it could not be given back whole.
    pub(super) fn close(self) {
        if let Self::Npu(npu) = self
            && let Some(npu) = Arc::into_inner(npu)
            && let Err(error) = npu.close()
        {
            say(format_args!("warning: the NPU was not released as it should be: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_numbers() {
        assert_eq!(backend("cpu"), Ok(Backend::Cpu));
        assert_eq!((backend("cann"), backend("cann:7")), (Ok(Backend::Cann(0)), Ok(Backend::Cann(7))));
        for bad in ["", "gpu", "cann:", "cann:-1", "cann:x", "cpu:0", "cann:99999999999"] {
            assert!(backend(bad).is_err(), "{bad}");
        }
    }
}
