"""Words by which tests recognise the program's statements as they pass the proxy."""

from __future__ import annotations

from tests.sandbox.database import LEDGER

COLUMNS = "SHOW FULL COLUMNS"
LEDGER_IS_THERE = f"SHOW CREATE TABLE `{LEDGER}`"
NEWEST_LOGS = "MAX(created_at)"
ZONES = "GROUP BY 1"
START = "LIMIT 1 OFFSET"
CLAIM = f"UPDATE user_id = {LEDGER}.user_id"
CLAIM_CHECK = ") AND local_day >= '2"  # the gates read a user's rows of all days
RECORD = "UPDATE state = IF(run_token"
RELEASE = f"DELETE FROM {LEDGER} WHERE (user_id"
SLICE = "SELECT COUNT(*), MAX(id)"
PAGE = "AND NOT EXISTS (SELECT 1 FROM `Habit`"
HISTORY = ") AND local_day >= '0001"
SETTLE = "SET state = '"
OUTCOMES = "final_status IS NULL AND claimed_at"
PURGE = "SELECT user_id, local_day, run_token"
