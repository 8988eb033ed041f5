-- What the program's evaluation is measured against: the due users by one grouped query, run by the server's C client.
-- BenchZone holds the bounds of each zone's days; users of unknown zones and with bad phone numbers drop out by the way.
-- Grouped by the primary key alone, so that the server needs no temporary table: with name and phone it takes four times as long.
SELECT u.id, u.name, u.phone_number
FROM User u
JOIN BenchZone z ON z.zone = u.time_zone
LEFT JOIN Habit h ON h.user_id = u.id
LEFT JOIN Log l ON l.habit_id = h.id AND l.created_at >= z.day2 AND l.created_at < z.day3
WHERE u.phone_number LIKE '+%'
GROUP BY u.id
HAVING COUNT(l.habit_id) = 0
