//! A: new keys on an empty ledger, by connections and by payloads. G: the memory that this takes.

use crate::account::peak_memory_bytes;
use crate::ledger::Ledger;
use crate::plan::{MANY_CONNECTIONS, USUAL_CONNECTIONS};
use crate::requests::Payload;
use crate::results::{Memory, Results, Row};
use crate::rows::found;
use crate::run::Setting;

pub fn measure(setting: &Setting, results: &mut Results) -> anyhow::Result<()> {
    let Setting { postgres, release, plan } = setting;
    for &connections in plan.connections {
        // A new ledger for each row, so that earlier rows have no effect.
        let ledger = Ledger::empty(postgres, release, "hapax")?;
        let replica = ledger.serve(&[])?;
        let idle = peak_memory_bytes(replica.process())?;
        let measurement = ledger.create(&replica, connections, Payload::Mail, plan.times)?;
        found(results, Row::Hapax { connections }, measurement);
        if connections == MANY_CONNECTIONS && results.memory.is_empty() {
            let replay_cache_limit_bytes = release.replay_cache_bytes(postgres)?.unwrap_or(0);
            let mut remember = |when: &str, bytes| {
                results.memory.push(Memory { when: when.to_owned(), bytes, replay_cache_limit_bytes });
            };
            remember("idle, just started", idle);
            remember(&format!("after A over {MANY_CONNECTIONS} connections"), peak_memory_bytes(replica.process())?);
        }
    }
    let ledger = Ledger::empty(postgres, release, "hapax")?;
    let replica = ledger.serve(&[])?;
    for &bytes in plan.payload_bytes {
        let measurement = ledger.create(&replica, USUAL_CONNECTIONS, Payload::Bytes(bytes), plan.times)?;
        found(results, Row::Payload { bytes }, measurement);
    }
    Ok(())
}
