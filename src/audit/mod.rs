//! Checks of the invariants that live in the data. `hapax audit` runs them on any database, and so do the tests.
//!
//! A check is one statement that only reads. It takes no locks beyond those of a SELECT, so it runs beside the service. It
//! reads whole tables: its cost grows with the number of rows. While it runs, its snapshot keeps vacuum from removing rows
//! that were deleted since.

mod checks;
mod queries;

pub use checks::CHECKS;
pub use queries::{Counts, Violations, count_rows, delete_violations, forbid_writes, prepare_session, violations};

/// An invariant and the statement that finds its violations.
#[derive(Debug)]
pub struct Check {
    pub name: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// A query with a row for each violation. The first column describes it, with the ids of the rows.
    violations: &'static str,
    /// The table from which a repair deletes the violating rows, whose ctid is the second column of the query. `None`: there
    /// is no safe repair.
    deletes_from: Option<&'static str>,
}

impl Check {
    pub fn can_repair(&self) -> bool {
        self.deletes_from.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_has_its_own_name_and_says_what_must_hold() {
        let names: BTreeSet<_> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
        for Check { name, rule, violations, deletes_from } in CHECKS {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(rule.ends_with('.'), "{name}");
            assert_eq!(violations.contains("row_id"), deletes_from.is_some(), "{name}");
        }
    }

    /// On a distributed database, the rows of a tenant are on one node, so a join by tenant stays there.
    #[test]
    fn every_check_names_the_schema_and_joins_within_a_tenant() {
        for Check { name, violations, .. } in CHECKS {
            for table in ["jobs", "job_queue", "job_leases", "job_outcomes", "job_attempts", "job_uniques", "claims"] {
                for word in ["from", "join"] {
                    assert!(
                        !violations.contains(&format!("{word} {table} ")),
                        "{name} names {table} without its schema"
                    );
                }
            }
            let joins = violations.matches("join ").count() + violations.matches("exists (").count();
            let within_tenant =
                violations.matches("tenant_id = ").count() + violations.matches("tenants.id = ").count();
            assert!(within_tenant >= joins, "{name}");
        }
    }
}
