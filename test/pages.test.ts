import { nativeTests } from './native-tests.js';

nativeTests('pages');
