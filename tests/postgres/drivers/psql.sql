-- Run by psql with -a: all that it prints is the same through the proxy.
\set VERBOSITY verbose
drop table if exists psql_t;
create table psql_t (id int primary key, note text);
insert into psql_t select n, 'note ' || n from generate_series(1, 5) n;
select * from psql_t order by id;
begin;
insert into psql_t values (6, 'six');
savepoint a;
insert into psql_t values (6, 'again');
rollback to a;
commit;
begin;
delete from psql_t;
rollback;
select count(*) from psql_t;
select 1 / 0;
select 'still here';
\copy psql_t from stdin
7	seven
8	eight
\.
\copy psql_t from stdin
x	not a number
\.
\copy psql_t to stdout
copy (select n from generate_series(1, 3) n) to stdout;
select 1 as a \; select 2 as b \; select 3 as c;
do $$ begin raise notice 'hear'; raise warning 'hear, too'; end $$;
\set FETCH_COUNT 3
select n from generate_series(1, 10) n;
\unset FETCH_COUNT
select length(repeat('x', 1000000));
select id, note from psql_t order by id \gdesc
\d psql_t
listen bell;
notify bell, 'ding';
unlisten *;
drop table psql_t;
