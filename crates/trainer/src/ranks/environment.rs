//! What the environment says of the processes of a run.

use crate::{Error, Result};

/// The port where the first rank waits unless `MASTER_PORT` says otherwise: PyTorch's.
const PORT: u16 = 29500;

/// Whether `torchrun` has a store at that port.
const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";

/// One process's place among those of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Which it is on its machine, from 0: the number of its GPU.
    pub local_rank: usize,
    /// The machine of rank 0.
    pub host: String,
    /// Where rank 0 waits for the others.
    pub port: u16,
    /// Where `torchrun` has a store of its own at that port, the name of the run: under it rank 0 tells the others through
    /// the store where it waits.
    pub store: Option<String>,
}

impl Membership {
    /// As `torchrun` says it (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`, and with
    /// `TORCHELASTIC_USE_AGENT_STORE=True` that it has a store there, for the run `TORCHELASTIC_RUN_ID`), or Slurm's `srun`
    /// (`SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`, and of `SLURM_STEP_NODELIST` the first). `None` for a process
    /// that is alone.
    ///
    /// # Errors
    /// If a variable is missing or makes no sense.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let variables = Variables(get);
        let mut store = None;
        let (names, host) = if variables.has("WORLD_SIZE") || variables.has("RANK") {
            // torch compares with this word, too.
            if variables.text(AGENT_STORE).as_deref() == Some("True") {
                store = Some(variables.text("TORCHELASTIC_RUN_ID").unwrap_or_default());
            }
            (["RANK", "WORLD_SIZE", "LOCAL_RANK"], "127.0.0.1".to_string())
        } else if variables.has("SLURM_STEP_NUM_TASKS") {
            // A job's script, which runs once for all tasks, has SLURM_PROCID and SLURM_NTASKS as well.
            let nodes = variables.text("SLURM_STEP_NODELIST");
            let host = nodes.as_deref().map_or("127.0.0.1".into(), first_host);
            (["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"], host)
        } else {
            return Ok(None);
        };
        let [rank_name, size_name, local_name] = names;
        let size = variables.number(size_name)?.ok_or_else(|| missing(size_name, rank_name))?;
        let rank = variables.number(rank_name)?.ok_or_else(|| missing(rank_name, size_name))?;
        if rank >= size {
            return Err(Error::Ranks(format!(
                "{rank_name} is {rank}, and {size_name} {size}: it must be less"
            )));
        }
        if size == 1 {
            return Ok(None);
        }
        let local_rank = variables.number(local_name)?.unwrap_or(rank);
        let host = variables.text("MASTER_ADDR").unwrap_or(host);
        let port = variables.number("MASTER_PORT")?.unwrap_or(PORT.into());
        let port = u16::try_from(port).ok().filter(|&port| port > 0);
        let port = port.ok_or_else(|| Error::Ranks("MASTER_PORT must be between 1 and 65535".into()))?;
        Ok(Some(Self { rank, size, local_rank, host, port, store }))
    }
}

fn missing(name: &str, other: &str) -> Error {
    Error::Ranks(format!("{other} is set and {name} is not; both say which process of a run this is"))
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::Ranks(format!("{name} must be a whole number, found '{text}'"))),
        }
    }
}

/// The first machine of a list as Slurm writes it: `gpu[03-05,9],login`.
fn first_host(list: &str) -> String {
    let Some(open) = list.find('[').filter(|&open| !list[..open].contains(',')) else {
        return list.split(',').next().unwrap_or_default().to_string();
    };
    let numbers = &list[open + 1..];
    let inside = &numbers[..numbers.find(']').unwrap_or(numbers.len())];
    let first = inside.split([',', '-']).next().unwrap_or_default();
    let rest = numbers.get(inside.len() + 1..).unwrap_or_default();
    format!("{}{first}{}", &list[..open], rest.split(',').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Membership>> {
        Membership::from_variables(&|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn torchrun() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        let all = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "1234"),
        ];
        let expected =
            Membership { rank: 5, size: 8, local_rank: 1, host: "node0".into(), port: 1234, store: None };
        assert_eq!(read(&all).unwrap(), Some(expected.clone()));
        let with = |value| [&all[..], &[(AGENT_STORE, value), ("TORCHELASTIC_RUN_ID", "job")]].concat();
        assert_eq!(read(&with("False")).unwrap(), Some(expected.clone()));
        let expected = Membership { store: Some("job".into()), ..expected };
        assert_eq!(read(&with("True")).unwrap(), Some(expected));
    }

    #[test]
    fn slurm() {
        let all = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[03-05,9],login"),
        ];
        let expected =
            Membership { rank: 3, size: 4, local_rank: 1, host: "gpu03".into(), port: PORT, store: None };
        assert_eq!(read(&all).unwrap(), Some(expected.clone()));
        // What is left of a torchrun that started the job.
        assert_eq!(read(&[&all[..], &[(AGENT_STORE, "True")]].concat()).unwrap(), Some(expected));
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "gpu03")];
        assert_eq!(read(&script).unwrap(), None);
    }

    #[test]
    fn lists_of_machines() {
        for (list, first) in
            [("a", "a"), ("a,b[1-2]", "a"), ("n[1,4]", "n1"), ("n[007-9]-ib,m", "n007-ib"), ("n[7", "n7")]
        {
            assert_eq!(first_host(list), first);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let said = |variables: &[(&str, &str)]| read(variables).unwrap_err().to_string();
        assert_eq!(
            said(&[("RANK", "1")]),
            "RANK is set and WORLD_SIZE is not; both say which process of a run this is"
        );
        assert_eq!(
            said(&[("RANK", "2"), ("WORLD_SIZE", "2")]),
            "RANK is 2, and WORLD_SIZE 2: it must be less"
        );
        assert_eq!(said(&[("RANK", "x"), ("WORLD_SIZE", "2")]), "RANK must be a whole number, found 'x'");
        assert_eq!(
            said(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")]),
            "MASTER_PORT must be between 1 and 65535"
        );
    }
}
