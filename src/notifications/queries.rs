//! SQL of notifications.

use sqlx::PgConnection;

/// Sends notifications. Never in a transaction that writes a job: NOTIFY takes a lock on the whole database until its
/// transaction has committed, so commits would wait for each other.
pub async fn notify(connection: &mut PgConnection, payloads: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        /* notify */
        select pg_notify('hapax_events', payload)
        from unnest($1::text[]) as payloads (payload)
        "#,
        payloads,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// From now on, the session receives notifications.
pub async fn listen(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("/* listen */ listen hapax_events").execute(connection).await?;
    Ok(())
}
