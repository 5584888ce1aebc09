-- The functions that write are called by Hapax. Each is one statement for its caller, has one outcome, and neither begins nor
-- ends a transaction. Each sets its own lock timeout and durability, so it relies on no setting of the session. Parameters
-- begin with p_ and variables with v_, so that no name means a column by accident.

create function hapax.set_write_options(p_lock_timeout_ms integer, p_insist_on_durability boolean) returns void
language plpgsql
as $$
begin
    if p_lock_timeout_ms is not null then
        perform set_config('lock_timeout', p_lock_timeout_ms::text, true);
    end if;
    if p_insist_on_durability and current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end
$$;

comment on function hapax.set_write_options is 'For the rest of the transaction: how long a statement waits for a lock (null: as the session says), and that the commit is durable even if synchronous_commit is off.';
